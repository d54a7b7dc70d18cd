"""Questions that any worker can answer: request and reply over core NATS, both sides of it.

A reply is the JSON of the model that was asked for, or the error envelope. A reply that is too large for a message
(the names of twenty thousand LoRA files) is compressed if the question allows it.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Awaitable

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import BaseModel, ValidationError

from bridge.broker.connection import BROKER_ERRORS, respond
from bridge.broker.nats_client import MessageTooLarge
from bridge.contract import Answer, BridgeError, ErrorBody, ErrorEnvelope, Unavailable, WorkerError, read_answer

log = logging.getLogger(__name__)

ACCEPT_HEADER, ENCODING_HEADER = "Accept-Encoding", "Content-Encoding"
DEFLATE = "deflate"
MAX_REPLY_BYTES = 64 * 1024**2
"""The most that a compressed reply may grow to."""


async def ask_worker(nc: Client, subject: str, question: bytes, reply: type[Answer], *, timeout_s: float) -> Answer:
    """Ask the first free worker, and return its reply as the model `reply`.

    Raises WorkerError with the error that the worker reports, and Unavailable if no worker answers in time.
    """
    try:
        answer = await nc.request(subject, question, timeout=timeout_s, headers={ACCEPT_HEADER: DEFLATE})
    except nats.errors.NoRespondersError as error:
        raise Unavailable("no worker is running yet; try again in a moment") from error
    except BROKER_ERRORS as error:
        raise Unavailable(f"no worker answered ({error or type(error).__name__}); try again") from error
    data = answer.data
    if (answer.headers or {}).get(ENCODING_HEADER) == DEFLATE:
        try:
            data = zlib.decompressobj().decompress(data, MAX_REPLY_BYTES)
        except zlib.error as error:
            raise Unavailable(f"the reply of a worker is damaged ({error}); try again") from error
    try:
        return read_answer(reply, data)
    except ValidationError as mismatch:
        raise _error_in(data, mismatch) from mismatch


def _error_in(data: bytes, mismatch: ValidationError) -> BridgeError:
    """The error that a reply reports, where it is not the model that was asked for."""
    try:
        return WorkerError(read_answer(ErrorEnvelope, data).error)
    except ValidationError:
        return Unavailable(f"the worker that answered runs another version ({mismatch.title}); update it")


async def answer(nc: Client, msg: Msg, work: Awaitable[BaseModel], question: str) -> None:
    """Reply to a question with the result of `work`, or with the envelope of the error that it raises.

    `question` names the question in the log. Raises what `publish` raises.
    """
    data = await _answer_of(work, question)
    try:
        await respond(nc, msg, data)
        return
    except MessageTooLarge as error:
        too_large = error
    if (msg.headers or {}).get(ACCEPT_HEADER) == DEFLATE:
        try:
            await respond(nc, msg, zlib.compress(data), {ENCODING_HEADER: DEFLATE})
            return
        except MessageTooLarge as error:
            too_large = error
    log.warning("the reply to %s is not sent: %s", question, too_large)
    body = ErrorBody(code="unavailable", message=f"the worker's answer cannot be sent: {too_large}")
    await respond(nc, msg, ErrorEnvelope(error=body).model_dump_json().encode())


async def _answer_of(work: Awaitable[BaseModel], question: str) -> bytes:
    try:
        return (await work).model_dump_json().encode()
    except BridgeError as error:
        return error.envelope().model_dump_json().encode()
    except Exception as error:
        # The barrier of a question: the caller learns what went wrong here.
        log.exception("%s failed", question)
        body = ErrorBody(code="internal_error", message=f"{type(error).__name__}: {error}")
        return ErrorEnvelope(error=body).model_dump_json().encode()
