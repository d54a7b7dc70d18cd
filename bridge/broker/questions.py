"""Questions that any worker can answer: request and reply over core NATS, both sides of it.

A reply is the JSON of the model that was asked for, or the error envelope.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable
from typing import Any

import nats.errors
from nats.aio.client import Client
from pydantic import BaseModel, TypeAdapter, ValidationError

from bridge.broker.connection import BROKER_ERRORS
from bridge.contract import Answer, BridgeError, ErrorBody, ErrorEnvelope, Unavailable, WorkerError

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
        answer = _reader(reply).validate_json(data, extra="ignore")
    except ValidationError as error:
        raise Unavailable("the worker that answered runs another version of this service; update it") from error
    if isinstance(answer, ErrorEnvelope):
        raise WorkerError(answer.error)
    return answer


@functools.cache
def _reader(reply: type[BaseModel]) -> TypeAdapter[Any]:
    """What reads a reply: the model, or the envelope of an error."""
    return TypeAdapter(reply | ErrorEnvelope)


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
