"""The NATS door: request/reply with the models of REST. Errors are replies too."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any
from uuid import uuid4

from nats.aio.msg import Msg
from pydantic_core import from_json

from bridge import logs
from bridge.api.limits import RateLimiter, Waits, too_many
from bridge.api.metrics import Metrics
from bridge.broker import BROKER_ERRORS
from bridge.contract import ErrorBody, ErrorEnvelope, JobState
from bridge.errors import BridgeError, InvalidRequest, NotJson
from bridge.generation import Body, Generation

log = logging.getLogger(__name__)

QUEUE_GROUP = "gateways"
CLIENT = "NATS"
BASE64_GROWTH = 4 / 3
REPLY_OVERHEAD_BYTES = 64 * 1024
"""Room for everything in a reply but its pictures: prompts of the largest size, in JSON's escapes."""


class NatsDoor:
    """Answers `ai.vision.imagegen.request`.

    NATS does not say who asks, so all its callers together are one client to the rate. Whom the server lets in at all
    is the server's own business.
    """

    def __init__(self, generation: Generation, *, limiter: RateLimiter, waits: Waits, metrics: Metrics) -> None:
        self._generation = generation
        self._limiter = limiter
        self._waits = waits
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Subscribe. Gateways share the subject, so that each request is answered once."""
        await self._generation.queue.nc.subscribe(
            self._generation.queue.names.request, queue=QUEUE_GROUP, cb=self._on_request
        )

    async def _on_request(self, msg: Msg) -> None:
        # A callback blocks its subscription, and a picture takes seconds.
        task = asyncio.create_task(self._answer(msg))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, msg: Msg) -> None:
        request_id, began, code = uuid4().hex, time.monotonic(), "ok"
        with logs.about(request_id=request_id):
            try:
                reply = await self._reply(msg)
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

    async def _reply(self, msg: Msg) -> str:
        """The answer to one request. Raises BridgeError."""
        if self._limiter and not (verdict := self._limiter.take(CLIENT)).allowed:
            raise too_many(self._limiter, verdict)
        with self._waits.hold(CLIENT):
            body = Body(parse_body(msg.data), text_bytes=len(msg.data))
            state = await self._generation.generate(body)
            return (await self._generation.response(state, inline=self._fits(state))).model_dump_json()

    def _fits(self, state: JobState) -> bool:
        # The first picture is carried twice: alone, and first in the list of all.
        sizes = [image.size for image in state.images]
        needed = (sum(sizes) + sizes[0]) * BASE64_GROWTH + REPLY_OVERHEAD_BYTES
        return needed <= self._generation.queue.nc.max_payload


def parse_body(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`. Raises NotJson or InvalidRequest."""
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise NotJson(f"the body is not JSON: {error}") from error
    logs.keep_private(body)
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(body).__name__}")
    return body
