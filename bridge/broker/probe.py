"""Whether JetStream still stores: a small write to each stream that a job needs.

When a write fails, for want of disk space above all, nats-server gives up the stream that it was for until the server
is restarted, even if there is space again. The server answers every other question as before, and a write to another
stream may succeed. So each stream is written to, with what no reader of it sees. A message is larger than a page of the
file system: a smaller one may still fit into the last page of a full disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nats.aio.client import Client
from nats.js.errors import APIError, NoStreamResponseError

from bridge.broker.connection import BROKER_ERRORS
from bridge.broker.stores import is_at_its_bound
from bridge.contract import StorageFull, Unavailable
from bridge.disk import Disks
from bridge.names import Names

TIMEOUT_S = 3.0
PAYLOAD = b"\0" * 8192
FRESH_S = 1.0
"""Questions within this time share one answer."""
QUEUE_INTERVAL_S = 20.0
"""A probe takes a place in the queue for a moment, so the queue is probed less often."""
MISSING_ERRORS = (10059,)
"""Stream not found."""


@dataclass(frozen=True)
class Write:
    """One small write: the stream, the subject in it, and the headers that make it invisible to readers."""

    stream: str
    subject: str
    headers: dict[str, str] | None = None
    purge: bool = False
    """The message stays until it is purged."""


def writes_of(names: Names) -> list[Write]:
    """A write for each stream that jobs go through, the queues last."""
    marker = {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}
    """To readers of a bucket: this key does not exist."""
    replaced = {"Nats-Rollup": "sub"}
    buckets = [
        Write(f"KV_{name}", f"$KV.{name}.{names.probe_key}", marker) for name in (names.states, names.idempotency)
    ]
    # A chunk that no record names.
    objects = [
        Write(f"OBJ_{name}", f"$O.{name}.C.{names.probe_key}", replaced) for name in (names.images, names.inputs)
    ]
    queues = [
        Write(names.stream, names.probe_jobs, purge=True),
        Write(names.callbacks_stream, names.probe_callbacks, purge=True),
    ]
    return [*buckets, *objects, *queues]


class StoreProbe:
    """Probes the streams of one installation. `connection` gives the connection, which may be another one each time.

    `disks` are those that this process can see; an error says how much they have free. `make_missing` makes the streams
    that the server has lost.
    """

    def __init__(
        self,
        connection: Callable[[], Client],
        names: Names,
        *,
        timeout_s: float = TIMEOUT_S,
        disks: Disks = Disks(),  # noqa: B008 - frozen
        make_missing: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._make_missing = make_missing
        self._disks = disks
        self._connection = connection
        self._writes = writes_of(names)
        self._timeout_s = timeout_s
        self._queues_at = -QUEUE_INTERVAL_S
        self._asked_at = -FRESH_S
        self._asking: asyncio.Task[None] | None = None

    async def check(self) -> None:
        """Write to every stream. Raises Unavailable or StorageFull with the stream and what the server said.

        A stream that is missing is made. Who cannot make it takes it for one that nobody has opened yet: no error.
        """
        if self._asking is None or (self._asking.done() and time.monotonic() - self._asked_at >= FRESH_S):
            self._asked_at = time.monotonic()
            self._asking = asyncio.ensure_future(self._write_all())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._asking)

    async def _write_all(self) -> None:
        queues = time.monotonic() - self._queues_at >= QUEUE_INTERVAL_S
        # All at once: of a broken stream there is no answer, and one wait is enough for all.
        results = await asyncio.gather(
            *(self._write(write) for write in self._writes if queues or not write.purge), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        if not all(results) and self._make_missing is not None:  # Only where nothing worse is wrong.
            await self._make_missing()
        if queues:
            self._queues_at = time.monotonic()

    async def _write(self, write: Write) -> bool:
        """Write to one stream. False: there is no such stream. Raises Unavailable and StorageFull."""
        js = self._connection().jetstream(timeout=self._timeout_s)
        try:
            await js.publish(write.subject, PAYLOAD, stream=write.stream, headers=dict(write.headers or {}))
            if write.purge:
                await js.purge_stream(write.stream, subject=write.subject)
            return True
        except NoStreamResponseError:
            return False
        except APIError as error:
            if error.err_code in MISSING_ERRORS:
                return False
            if is_at_its_bound(error):  # It answers, and holds what it has.
                return True
            raise StorageFull(
                f"the NATS server stores nothing in {write.stream}: {error.description}{self._disks.free()}"
            ) from error
        except BROKER_ERRORS as error:
            raise Unavailable(
                f"the NATS server confirms no write to {write.stream} within {self._timeout_s:g} s "
                f"({error or type(error).__name__}): if its disk is full, free space on it, then restart nats-server "
                f"(imagegen up restarts its own){self._disks.free()}"
            ) from error
