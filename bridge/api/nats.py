"""The NATS API: request and reply with the models of REST. Errors are replies too.

| subject | request | reply |
|---|---|---|
| `request` | a generate request | `ImageGenResponse`, when the job is done |
| `submit` | a generate request | `JobState`, when the job is on disk |
| `state.<job>` | nothing | `JobState`, with the position of a job that waits and the progress of one that runs |
| `cancel` | `{"job_id"}` | `CancelAnswer` |
| `unload` | `{"model_name"?, "worker_id"?}` | `UnloadAnswer` |
| `queue` | nothing | `QueueState` |
| `queue.pause`, `queue.resume` | `{"reason"?}`, nothing | `QueueState` |
| `queue.cancel` | `{"running"?}` | `QueueCancelAnswer` |

`request` and `submit` take the header `Idempotency-Key`, as REST does: the same key with the same request is the same
job, and the reply then has the header `Idempotency-Replayed: true`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar
from uuid import uuid4

from nats.aio.msg import Msg
from pydantic import BaseModel, ValidationError

from bridge import logs, tracing
from bridge.api.limits import RateLimiter, Waits, too_many
from bridge.api.metrics import Metrics
from bridge.api.parsing import parse_body
from bridge.broker.connection import BROKER_ERRORS, respond, subscribed
from bridge.broker.nats_client import MessageTooLarge
from bridge.contract import (
    JOB_ID_PATTERN,
    BridgeError,
    CancelRequest,
    ErrorBody,
    ErrorEnvelope,
    ImageGenResponse,
    InvalidRequest,
    JobState,
    PauseRequest,
    QueueCancelRequest,
    UnknownJob,
    UnloadRequest,
)
from bridge.gateway.controls import Controls
from bridge.gateway.generation import Accepted, Generation
from bridge.gateway.index import JobIndex
from bridge.gateway.requests import Body

log = logging.getLogger(__name__)


class Reply(NamedTuple):
    """What a request is answered with. `replayed`: an earlier request with its Idempotency-Key made the job."""

    model: BaseModel
    replayed: bool = False


Serve = Callable[[Msg], Awaitable[Reply]]
Asked = TypeVar("Asked", bound=BaseModel)

QUEUE_GROUP = "gateways"
CLIENT = "NATS"
KEY_HEADER, REPLAYED_HEADER = "Idempotency-Key", "Idempotency-Replayed"
REPLY_HEADER_BYTES = 64
"""For `Idempotency-Replayed`."""


class NatsApi:
    """Answers the subjects above, below the prefix of the installation.

    NATS does not identify callers, so all of them share one rate. Access is controlled by the NATS server.
    """

    def __init__(
        self,
        generation: Generation,
        index: JobIndex,
        controls: Controls,
        *,
        limiter: RateLimiter,
        waits: Waits,
        metrics: Metrics,
    ) -> None:
        self._generation = generation
        self._controls = controls
        self._index = index
        self._limiter = limiter
        self._waits = waits
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Subscribe. Gateways share each subject, so that one of them answers a request."""
        nc, names = self._generation.queue.nc, self._generation.queue.names
        await nc.subscribe(names.request, queue=QUEUE_GROUP, cb=self._handler(self._generate, waits=True))
        await nc.subscribe(names.submit, queue=QUEUE_GROUP, cb=self._handler(self._submit))
        await nc.subscribe(f"{names.state}.*", queue=QUEUE_GROUP, cb=self._handler(self._state))
        # Waits for the worker, at most CANCEL_WAIT_S.
        await nc.subscribe(names.cancel, queue=QUEUE_GROUP, cb=self._handler(self._cancel, waits=True))
        for subject, serve in (
            (names.unload, self._unload),
            (names.queue, self._queue_state),
            (f"{names.queue}.pause", self._pause),
            (f"{names.queue}.resume", self._resume),
        ):
            await nc.subscribe(subject, queue=QUEUE_GROUP, cb=self._handler(serve))
        await nc.subscribe(f"{names.queue}.cancel", queue=QUEUE_GROUP, cb=self._handler(self._cancel_all, waits=True))
        await subscribed(nc)  # A caller that finds REST open finds these too.

    def _handler(self, serve: Serve, *, waits: bool = False) -> Callable[[Msg], Awaitable[None]]:
        """The callback of a subject. `waits`: its requests count as open requests."""

        async def on_request(msg: Msg) -> None:
            # A callback blocks its subscription, and an image takes seconds.
            task = asyncio.create_task(self._answer(msg, serve, waits))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return on_request

    async def _answer(self, msg: Msg, serve: Serve, waits: bool) -> None:
        request_id, began, code = uuid4().hex, time.monotonic(), "ok"
        name = f"NATS {msg.subject.removeprefix(self._generation.queue.names.prefix + '.').partition('.')[0]}"
        with tracing.span(name, "server", tracing.of(msg.headers)) as span, logs.about(request_id=request_id):
            try:
                reply = await self._reply(msg, serve, waits)
            except BridgeError as error:
                code = error.code
                reply = Reply(error.envelope())
            except Exception as error:
                code = "internal_error"
                log.exception("a NATS request failed")
                message = f"{type(error).__name__}; the service's log has the details under request {request_id}"
                reply = Reply(ErrorEnvelope(error=ErrorBody(code=code, message=message)))
            with contextlib.suppress(*BROKER_ERRORS):  # The caller misses the reply; the job is safe.
                code = await self._send(msg, reply) or code
            if code == "internal_error":
                span.fail(code)
            span.set(code=code)
            self._metrics.nats_request_ended(code)
            facts = logs.fields(code=code, ms=round((time.monotonic() - began) * 1000, 1))
            log.log(logging.WARNING if code == "internal_error" else logging.INFO, "NATS request", extra=facts)

    async def _send(self, msg: Msg, reply: Reply) -> str | None:
        """Send a reply. Returns the code of the error that went instead of a reply that was too large."""
        nc, headers = self._generation.queue.nc, {REPLAYED_HEADER: "true"} if reply.replayed else None
        try:
            await respond(nc, msg, reply.model.model_dump_json().encode(), headers)
        except MessageTooLarge as error:
            body = ErrorBody(
                code="reply_too_large", message=f"the reply is {error}; the job is not affected: read it over REST"
            )
            await respond(nc, msg, ErrorEnvelope(error=body).model_dump_json().encode())
            return body.code
        return None

    async def _reply(self, msg: Msg, serve: Serve, waits: bool) -> Reply:
        """The answer to one request. Raises BridgeError."""
        if self._limiter and not (verdict := self._limiter.take(CLIENT)).allowed:
            raise too_many(self._limiter, verdict)
        with self._waits.hold(CLIENT) if waits else contextlib.nullcontext():
            return await serve(msg)

    async def _generate(self, msg: Msg) -> Reply:
        accepted = await self._accept(msg)
        state = await self._generation.run(accepted)
        return Reply(await self._generation.response(state, inline=self._fits(state)), accepted.replayed)

    async def _submit(self, msg: Msg) -> Reply:
        accepted = await self._accept(msg)
        return Reply(self._index.view(await self._generation.submit(accepted)), accepted.replayed)

    async def _accept(self, msg: Msg) -> Accepted:
        body = Body(parse_body(msg.data), text_bytes=len(msg.data))
        body.refuse_cancel_on_disconnect()  # NATS does not say when a caller leaves.
        return await self._generation.accept(body, (msg.headers or {}).get(KEY_HEADER), endpoint=msg.subject)

    async def _state(self, msg: Msg) -> Reply:
        job_id = _job_id(msg.subject.rpartition(".")[2])
        state = await self._generation.exports.linked(await self._generation.queue.state(job_id))
        return Reply(self._index.view(state))

    async def _cancel(self, msg: Msg) -> Reply:
        asked = _read(CancelRequest, msg, 'cancel takes {"job_id": "<the id of the job>"} and nothing else', "job_id")
        return Reply(await self._generation.cancel(asked.job_id))

    async def _unload(self, msg: Msg) -> Reply:
        usage = 'unload takes {"model_name": "<a model>", "worker_id": "<a worker>"}; one that is left out means all'
        asked = _read(UnloadRequest, msg, usage)
        return Reply(await self._controls.unload(asked.model_name, asked.worker_id))

    async def _queue_state(self, _: Msg) -> Reply:
        return Reply(await self._controls.state())

    async def _pause(self, msg: Msg) -> Reply:
        asked = _read(PauseRequest, msg, 'pause takes {"reason": "<up to 500 characters>"}, or nothing', "reason")
        return Reply(await self._controls.set_pause(CLIENT, asked.reason))

    async def _resume(self, _: Msg) -> Reply:
        return Reply(await self._controls.resume())

    async def _cancel_all(self, msg: Msg) -> Reply:
        asked = _read(QueueCancelRequest, msg, 'queue.cancel takes {"running": true or false}, or nothing', "running")
        return Reply(await self._controls.cancel_all(running=asked.running))

    def _fits(self, state: JobState) -> bool:
        needed = ImageGenResponse.inline_bytes(state) + self._generation.exports.link_bytes(state) + REPLY_HEADER_BYTES
        return needed <= self._generation.queue.nc.max_payload


def _read(model: type[Asked], msg: Msg, usage: str, field: str | None = None) -> Asked:
    """The body of a request; an empty one is an empty object. Raises NotJson, and InvalidRequest with `usage`."""
    try:
        return model.model_validate(parse_body(msg.data or b"{}"))
    except ValidationError as error:
        raise InvalidRequest(usage, field=field) from error


def _job_id(text: str) -> str:
    """The text, if it is a job id: it becomes a key of the store. Raises UnknownJob."""
    if not re.fullmatch(JOB_ID_PATTERN, text):
        raise UnknownJob(f"no job has the id {text[:80]!r}: job ids are lowercase UUIDs", field="job_id")
    return text
