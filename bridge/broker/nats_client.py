"""nats-py's client, mended where a single message would end the connection.

nats-py closes a client for good when the server reports an error that is not about permissions, and a client whose
reading task meets an unexpected exception stays open and deaf. Both can be caused from outside, by a message that is
too large or one that is not UTF-8. This client refuses to send what the server would refuse, reads whatever the server
passes on, and connects again after every error of the server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from nats import errors
from nats.aio.client import Client

log = logging.getLogger(__name__)

PERMISSIONS = "permissions violation"
"""The one error after which the server keeps the connection."""
HEADER_LINE_BYTES = len(b"NATS/1.0\r\n")
RECONNECT_WAIT_S = 1.0
MAX_SUBJECT_BYTES = 2048
"""A longer subject or reply could exceed the server's `max_control_line`, 4096 bytes for the whole line."""


class MessageTooLarge(errors.MaxPayloadError):
    """A message that the server would refuse. Sizes in bytes."""

    def __init__(self, subject: str, size: int, limit: int) -> None:
        super().__init__()
        self.subject = subject
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return f"a message of {self.size} bytes exceeds the NATS server's max_payload of {self.limit}"


def message_bytes(payload: bytes, headers: Mapping[str, str] | None = None) -> int:
    """The size that the server compares with its `max_payload`: the payload and the headers."""
    if headers is None:
        return len(payload)
    lines = (
        len(name.strip().encode()) + len(value.strip().encode()) + len(": \r\n") for name, value in headers.items()
    )
    return HEADER_LINE_BYTES + sum(lines) + len("\r\n") + len(payload)


class NatsClient(Client):
    """A client that only its owner closes."""

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """As nats-py's. Raises MessageTooLarge also where only the headers are too much, and BadSubjectError."""
        size = message_bytes(payload, headers)
        if size > self.max_payload:
            raise MessageTooLarge(subject, size, self.max_payload)
        if max(len(subject.encode()), len(reply.encode())) > MAX_SUBJECT_BYTES:
            raise errors.BadSubjectError
        await super().publish(subject, payload, reply, headers)

    async def _process_err(self, err_msg: str) -> None:
        if self.is_connecting or PERMISSIONS in err_msg.lower():
            await super()._process_err(err_msg)
            return
        error = errors.Error(f"nats: {err_msg.strip(chr(39))}")
        log.warning("the NATS server ended the connection (%s); connecting again", err_msg.strip("'"))
        await self._error_cb(error)
        await self._process_op_err(error)

    async def _read_loop(self) -> None:
        await super()._read_loop()
        if self.is_connected:  # It ended by an exception that nats-py did not expect.
            await self._process_op_err(errors.UnexpectedEOF())

    async def _attempt_reconnect(self) -> None:
        while True:
            try:
                await super()._attempt_reconnect()
                return
            except Exception as error:
                # nats-py expects only errors of the network and its own, and would stay disconnected for ever.
                log.warning("reconnecting to the NATS server failed: %r; trying again", error)
                await asyncio.sleep(RECONNECT_WAIT_S)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        # nats-py decodes both, and what is not UTF-8 would end its reading task.
        if not _is_utf8(reply):
            reply = b""
        if not _is_utf8(subject):
            subject = _as_utf8(subject)
        await super()._process_msg(sid, subject, reply, data, headers)

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            # nats-py drops headers that are not UTF-8. An Idempotency-Key among them has to be seen, and refused.
            return await super()._process_headers(headers if _is_utf8(headers) else _as_utf8(headers))
        except (ValueError, IndexError) as error:
            log.warning("the headers of a NATS message cannot be read: %r", error)
            return None


def _is_utf8(text: bytes | None) -> bool:
    try:
        (text or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _as_utf8(text: bytes) -> bytes:
    return text.decode(errors="replace").encode()
