"""Questions that any worker can answer: request and reply over core NATS, both sides of it.

A reply is the JSON of the model that was asked for, or the error envelope.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable

import nats.errors
from nats.aio.client import Client
from pydantic import BaseModel, ValidationError

from bridge.broker.connection import BROKER_ERRORS
from bridge.contract import Answer, BridgeError, ErrorBody, ErrorEnvelope, Unavailable, WorkerError, read_answer

log = logging.getLogger(__name__)


async def ask_worker(nc: Client, subject: str, question: bytes, reply: type[Answer], *, timeout_s: float) -> Answer:
    """Ask the first free worker, and return its reply as the model `reply`.

    Raises WorkerError with the error that the worker reports, and Unavailable if no worker answers in time.
    """
    try:
        data = (await nc.request(subject, question, timeout=timeout_s)).data
    except nats.errors.NoRespondersError as error:
        raise Unavailable("no worker is running yet; try again in a moment") from error
    except BROKER_ERRORS as error:
        raise Unavailable(f"no worker answered ({error or type(error).__name__}); try again") from error
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


async def answer_of(work: Awaitable[BaseModel], question: str) -> bytes:
    """The worker's reply: the result of `work`, or the envelope of the error that it raises.

    `question` names the question in the log.
    """
    try:
        return (await work).model_dump_json().encode()
    except BridgeError as error:
        return error.envelope().model_dump_json().encode()
    except Exception as error:
        # The barrier of a question: the caller learns what went wrong here.
        log.exception("%s failed", question)
        body = ErrorBody(code="internal_error", message=f"{type(error).__name__}: {error}")
        return ErrorEnvelope(error=body).model_dump_json().encode()
