"""The NATS door: request/reply with the models of REST. Errors are replies too.

| subject | asks | is answered with |
|---|---|---|
| `request` | a generate request | `ImageGenResponse`, when the job is done |
| `submit` | a generate request | `JobState`, when the job is on disk |
| `state.<job>` | nothing | `JobState`, with the position of a job that waits and the progress of one that runs |
| `cancel` | `{"job_id"}` | `CancelAnswer` |
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

from nats.aio.msg import Msg
from pydantic import BaseModel, ValidationError

from bridge import logs
from bridge.api.limits import RateLimiter, Waits, too_many
from bridge.api.metrics import Metrics
from bridge.api.parsing import parse_body
from bridge.broker.connection import BROKER_ERRORS, subscribed
from bridge.contract import (
    JOB_ID_PATTERN,
    BridgeError,
    CancelRequest,
    ErrorBody,
    ErrorEnvelope,
    InvalidRequest,
    JobState,
    UnknownJob,
)
from bridge.gateway.cancellation import cancel
from bridge.gateway.generation import Body, Generation
from bridge.gateway.index import JobIndex

log = logging.getLogger(__name__)

Serve = Callable[[Msg], Awaitable[BaseModel]]

QUEUE_GROUP = "gateways"
CLIENT = "NATS"
BASE64_GROWTH = 4 / 3
REPLY_OVERHEAD_BYTES = 64 * 1024
"""Room for everything in a reply but its images: prompts of the largest size, in JSON's escapes."""


class NatsApi:
    """Answers the subjects above, below the prefix of the installation.

    NATS does not say who asks, so all its callers together are one client to the rate. Whom the server lets in at all
    is the server's own business.
    """

    def __init__(
        self, generation: Generation, index: JobIndex, *, limiter: RateLimiter, waits: Waits, metrics: Metrics
    ) -> None:
        self._generation = generation
        self._index = index
        self._limiter = limiter
        self._waits = waits
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Subscribe. Gateways share the subject, so that each request is answered once."""
        nc, names = self._generation.queue.nc, self._generation.queue.names
        await nc.subscribe(names.request, queue=QUEUE_GROUP, cb=self._door(self._draw, waits=True))
        await nc.subscribe(names.submit, queue=QUEUE_GROUP, cb=self._door(self._submit))
        await nc.subscribe(f"{names.state}.*", queue=QUEUE_GROUP, cb=self._door(self._state))
        # It waits for the worker, at most CANCEL_WAIT_S.
        await nc.subscribe(names.cancel, queue=QUEUE_GROUP, cb=self._door(self._cancel, waits=True))
        await subscribed(nc)  # Whoever finds REST open finds these too.

    def _door(self, serve: Serve, *, waits: bool = False) -> Callable[[Msg], Awaitable[None]]:
        """The callback of a subject. What `waits` counts among the requests that are open."""

        async def on_request(msg: Msg) -> None:
            # A callback blocks its subscription, and an image takes seconds.
            task = asyncio.create_task(self._answer(msg, serve, waits))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return on_request

    async def _answer(self, msg: Msg, serve: Serve, waits: bool) -> None:
        request_id, began, code = uuid4().hex, time.monotonic(), "ok"
        with logs.about(request_id=request_id):
            try:
                reply = await self._reply(msg, serve, waits)
            except BridgeError as error:
                code = error.code
                reply = error.envelope().model_dump_json()
            except Exception as error:
                code = "internal_error"
                log.exception("a NATS request failed")
                message = f"{type(error).__name__}; the service's log has the details under request {request_id}"
                reply = ErrorEnvelope(error=ErrorBody(code=code, message=message)).model_dump_json()
            if msg.reply:
                with contextlib.suppress(*BROKER_ERRORS):  # The caller will not hear it; the job is safe.
                    await msg.respond(reply.encode())
            self._metrics.nats_request_ended(code)
            told = logs.fields(code=code, ms=round((time.monotonic() - began) * 1000, 1))
            log.log(logging.WARNING if code == "internal_error" else logging.INFO, "NATS request", extra=told)

    async def _reply(self, msg: Msg, serve: Serve, waits: bool) -> str:
        """The answer to one request. Raises BridgeError."""
        if self._limiter and not (verdict := self._limiter.take(CLIENT)).allowed:
            raise too_many(self._limiter, verdict)
        with self._waits.hold(CLIENT) if waits else contextlib.nullcontext():
            return (await serve(msg)).model_dump_json()

    async def _draw(self, msg: Msg) -> BaseModel:
        state = await self._generation.generate(_body(msg))
        return await self._generation.response(state, inline=self._fits(state))

    async def _submit(self, msg: Msg) -> BaseModel:
        return self._index.view(await self._generation.submit(_body(msg)))

    async def _state(self, msg: Msg) -> BaseModel:
        job_id = _job_id(msg.subject.rpartition(".")[2])
        return self._index.view(await self._generation.queue.state(job_id))

    async def _cancel(self, msg: Msg) -> BaseModel:
        try:
            asked = CancelRequest.model_validate(parse_body(msg.data))
        except ValidationError as error:
            message = 'cancel takes {"job_id": "<the id of the job>"} and nothing else'
            raise InvalidRequest(message, field="job_id") from error
        return await cancel(self._generation.queue, asked.job_id)

    def _fits(self, state: JobState) -> bool:
        # The first image is carried twice: alone, and first in the list of all.
        sizes = [image.size for image in state.images]
        needed = (sum(sizes) + sizes[0]) * BASE64_GROWTH + REPLY_OVERHEAD_BYTES
        return needed <= self._generation.queue.nc.max_payload


def _body(msg: Msg) -> Body:
    return Body(parse_body(msg.data), text_bytes=len(msg.data))


def _job_id(text: str) -> str:
    """The id of a job, if it is one: it becomes a key of the store. Raises UnknownJob."""
    if not re.fullmatch(JOB_ID_PATTERN, text):
        raise UnknownJob(f"no job has the id {text[:80]!r}: ids are lowercase UUIDs", field="job_id")
    return text
