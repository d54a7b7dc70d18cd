"""The REST door: each handler reads a request, asks `Generation`, and writes the answer down."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any
from urllib.parse import quote

from aiohttp import WSMsgType, web
from pydantic import BaseModel

from bridge.api.nats_doors import parse_body
from bridge.contract import JOB_ID_PATTERN, JobEvent, JobState
from bridge.errors import InvalidRequest, Unavailable, UnknownJob, UnsupportedMediaType
from bridge.generation import Generation
from bridge.jobs import final_event

GENERATION = web.AppKey("generation", Generation)
MAX_BODY_BYTES = 1024 * 1024
WEBSOCKET_HEARTBEAT_S = 20.0
UNKNOWN_JOB_WAIT_S = 60.0
"""A client may ask for the events of a job that it is about to submit; one that never comes is given up after this."""

routes = web.RouteTableDef()


def reply(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A model as JSON."""
    return web.json_response(text=model.model_dump_json(), status=status, headers=headers)


async def read_json(request: web.Request) -> dict[str, Any]:
    """The request's JSON object. Raises UnsupportedMediaType, BodyTooLarge, NotJson or InvalidRequest."""
    if request.content_type != "application/json":
        given = request.headers.get("Content-Type") or "none"
        raise UnsupportedMediaType(f"Content-Type is {given}; send application/json")
    return parse_body(await request.read())


def job_id_of(request: web.Request) -> str:
    """The job id in the path. Raises UnknownJob where it cannot be one."""
    job_id = request.match_info["job_id"]
    if not re.match(JOB_ID_PATTERN, job_id):
        raise UnknownJob(f"{job_id!r} is not a job id: a lowercase UUID is", field="job_id")
    return job_id


@routes.post("/v1/generate-image")
async def generate_image(request: web.Request) -> web.Response:
    """Draw, and answer with the pictures."""
    generation = request.app[GENERATION]
    state = await generation.generate(await read_json(request))
    return reply(await generation.response(state))


@routes.post("/v1/jobs")
async def submit_job(request: web.Request) -> web.Response:
    """Accept the same request, and answer at once with the job."""
    generation = request.app[GENERATION]
    state = await generation.queue.submit(await generation.job(await read_json(request)))
    return reply(state, 202, {"Location": f"/v1/jobs/{quote(state.job_id)}"})


@routes.get("/v1/jobs/{job_id}")
async def job_state(request: web.Request) -> web.Response:
    """What is known of a job."""
    return reply(await request.app[GENERATION].queue.state(job_id_of(request)))


@routes.get("/v1/jobs/{job_id}/images/{index}")
async def job_image(request: web.Request) -> web.Response:
    """One picture of a job, counted from 0."""
    queue = request.app[GENERATION].queue
    state = await queue.state(job_id_of(request))
    index = request.match_info["index"]
    if not index.isdecimal() or int(index) >= len(state.images):
        raise UnknownJob(f"job {state.job_id} is {state.status} with {len(state.images)} pictures; none is {index}")
    data = await queue.image(state.images[int(index)])
    return web.Response(body=data, content_type=f"image/{state.image_format}")


@routes.delete("/v1/jobs/{job_id}")
async def cancel_job(request: web.Request) -> web.Response:
    """Cancel a job that waits or runs. One that has ended stays as it is."""
    return reply(await request.app[GENERATION].queue.cancel(job_id_of(request)))


@routes.get("/v1/jobs/{job_id}/events")
async def job_events(request: web.Request) -> web.WebSocketResponse:
    """The events of a job over a WebSocket: its present state first, then each event, to the final one."""
    queue = request.app[GENERATION].queue
    job_id = job_id_of(request)
    socket = web.WebSocketResponse(heartbeat=WEBSOCKET_HEARTBEAT_S)
    await socket.prepare(request)
    with queue.listen(job_id) as events:
        sender = asyncio.create_task(_send_events(request.app[GENERATION], job_id, events, socket))
        try:
            async for message in socket:  # Nothing is expected; reading is what notices that the client left.
                if message.type is WSMsgType.ERROR:
                    break
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sender
    return socket


async def _send_events(
    generation: Generation, job_id: str, events: asyncio.Queue[JobEvent], socket: web.WebSocketResponse
) -> None:
    try:
        state = await generation.queue.state(job_id)
    except (UnknownJob, Unavailable):
        state = None
    if state is not None:
        await _send(socket, final_event(state) if state.status.final else _present(state))
        if state.status.final:
            await socket.close()
            return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if state else UNKNOWN_JOB_WAIT_S) as patience:
            async for event in generation.queue.follow(job_id, events):
                patience.reschedule(None)
                await _send(socket, event)
    await socket.close()


def _present(state: JobState) -> JobEvent:
    return JobEvent(type="state", job_id=state.job_id, state=state)


async def _send(socket: web.WebSocketResponse, event: JobEvent) -> None:
    await socket.send_str(event.model_dump_json(exclude_none=True))


@routes.get("/v1/model-info")
async def model_info(request: web.Request) -> web.Response:
    """The models and the machine, asked of ComfyUI now."""
    return reply(await request.app[GENERATION].model_info())


@routes.post("/v1/load-model")
async def load_model(request: web.Request) -> web.Response:
    """Load a model now."""
    name = request.query.get("model_name", "")
    if not name:
        raise InvalidRequest("model_name is required: POST /v1/load-model?model_name=…", field="model_name")
    return reply(await request.app[GENERATION].load(name))


@routes.get("/v1/modes")
async def modes(request: web.Request) -> web.Response:
    """The names of the saved graphs."""
    return web.json_response({"modes": request.app[GENERATION].modes.names()})


@routes.get("/v1/modes/{name}")
async def mode(request: web.Request) -> web.Response:
    """What a saved graph takes, as JSON Schema."""
    return web.json_response(request.app[GENERATION].modes.get(request.match_info["name"]).json_schema())


@routes.get("/healthz")
async def healthz(_: web.Request) -> web.Response:
    """Whether this process serves."""
    return web.json_response({"status": "ok"})


@routes.get("/readyz")
async def readyz(request: web.Request) -> web.Response:
    """Whether a request would be run: NATS, a worker, its ComfyUI and the node pack all answer."""
    if not request.app[GENERATION].queue.nc.is_connected:
        raise Unavailable("the connection to the NATS server is down; it is being restored")
    info = await request.app[GENERATION].model_info()
    return web.json_response({"status": "ready", "device": info.device, "default_model": info.default_model})
