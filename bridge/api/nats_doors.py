"""The NATS door: request/reply with the models of REST. Errors are replies too."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from nats.aio.msg import Msg
from pydantic_core import from_json

from bridge.contract import ErrorBody, ErrorEnvelope, JobState
from bridge.errors import BridgeError, InvalidRequest, NotJson
from bridge.generation import Generation
from bridge.jobs import REQUEST_SUBJECT

log = logging.getLogger(__name__)

QUEUE_GROUP = "gateways"
BASE64_GROWTH = 4 / 3
REPLY_OVERHEAD_BYTES = 64 * 1024
"""Room for everything in a reply but its pictures: prompts of the largest size, in JSON's escapes."""


class NatsDoor:
    """Answers `ai.vision.imagegen.request`."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Subscribe. Gateways share the subject, so that each request is answered once."""
        await self._generation.queue.nc.subscribe(REQUEST_SUBJECT, queue=QUEUE_GROUP, cb=self._on_request)

    async def _on_request(self, msg: Msg) -> None:
        # A callback blocks its subscription, and a picture takes seconds.
        task = asyncio.create_task(self._answer(msg))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, msg: Msg) -> None:
        try:
            state = await self._generation.generate(parse_body(msg.data))
            reply = (await self._generation.response(state, inline=self._fits(state))).model_dump_json()
        except BridgeError as error:
            reply = error.envelope().model_dump_json()
        except Exception as error:
            log.exception("a NATS request failed")
            body = ErrorBody(code="internal_error", message=f"{type(error).__name__}: {error}")
            reply = ErrorEnvelope(error=body).model_dump_json()
        if msg.reply:
            await msg.respond(reply.encode())

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
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(body).__name__}")
    return body
