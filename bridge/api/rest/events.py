"""The events of a job as they happen: over a WebSocket, or as server-sent events on the same path."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import WSCloseCode, WSMsgType, web

from bridge.api.http.operations import Answer, Query, operation
from bridge.api.http.replies import GENERATION, INDEX, job_id_of
from bridge.contract import JobEvent
from bridge.gateway.events import UNKNOWN_JOB_WAIT_S, tell

HEARTBEAT_S = 15.0
SEND_TIMEOUT_S = 120.0
"""A reader that accepts nothing for this long counts as gone."""
RETRY_MS = 2000
UNKNOWN_JOB_CODE = 4404
"""The code that closes a WebSocket whose job was never submitted."""
LAST_ID = "end"
"""The id of the final event. An EventSource that reconnects with it has everything, and gets a 204."""
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}
FLAGS = {"true": True, "True": True, "1": True, "false": False, "False": False, "0": False}
"""With `True` and `False`, as Python writes them."""

routes = web.RouteTableDef()


@routes.get("/v1/jobs/{job_id}/events")
@operation(
    "Events of a job, as server-sent events or over a WebSocket",
    answers={
        200: Answer(
            "Server-sent events; each `data` is a JobEvent: first the current state, then every event up to the end.",
            media="text/event-stream",
        ),
        101: Answer("The same events as WebSocket text frames, for a request with `Upgrade: websocket`.", JobEvent),
        204: Answer(f"With `Last-Event-ID: {LAST_ID}`: the client has the final event; there are no more.", media=None),
    },
    errors=(404, 422, 503),
    parameters=[
        Query("previews", {"type": "string", "enum": list(FLAGS)}, "`true`: include small preview images."),
        Query("Last-Event-ID", {"type": "string"}, "Sent by browsers that reconnect.", where="header"),
    ],
    waits=True,
)
async def job_events(request: web.Request) -> web.StreamResponse:
    """The events of a job: its current state first, then every event up to the final one."""
    job_id = job_id_of(request)
    previews = FLAGS[request.query.get("previews", "false")]
    if request.method == "HEAD":
        await request.app[GENERATION].queue.state(job_id)
        return web.Response(headers=STREAM_HEADERS)
    if request.headers.get("Upgrade", "").lower() == "websocket":
        return await _over_websocket(request, job_id, previews)
    if request.headers.get("Last-Event-ID") == LAST_ID:
        return web.Response(status=204)
    return await _as_server_sent(request, job_id, previews)


def _events(request: web.Request, job_id: str, previews: bool, wait_s: float) -> AsyncIterator[JobEvent]:
    generation = request.app[GENERATION]
    return tell(
        generation.queue,
        request.app[INDEX],
        job_id,
        previews=previews,
        unknown_wait_s=wait_s,
        exports=generation.exports,
    )


async def _as_server_sent(request: web.Request, job_id: str, previews: bool) -> web.StreamResponse:
    # An unknown job is a 404: an EventSource would treat any other answer as a broken stream.
    await request.app[GENERATION].queue.state(job_id)
    response = web.StreamResponse(headers=STREAM_HEADERS)
    await response.prepare(request)
    events = _events(request, job_id, previews, 0.0)
    await _write(response, f"retry: {RETRY_MS}\n\n")
    number = 0
    coming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=HEARTBEAT_S)
            if not done:
                await _write(response, ": still here\n\n")
                continue
            event = coming.result()
            if event is None:
                break
            number += 1
            identity = LAST_ID if event.final else str(number)
            data = event.model_dump_json(exclude_none=True)
            await _write(response, f"id: {identity}\nevent: {event.type}\ndata: {data}\n\n")
            coming = asyncio.ensure_future(anext(events, None))
        await response.write_eof()
    except (ConnectionError, TimeoutError):
        pass  # The reader left, or accepts nothing.
    finally:
        await _end(coming, events)
    return response


async def _write(response: web.StreamResponse, text: str) -> None:
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await response.write(text.encode())


async def _over_websocket(request: web.Request, job_id: str, previews: bool) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S)
    await socket.prepare(request)
    sender = asyncio.create_task(_send_all(socket, _events(request, job_id, previews, UNKNOWN_JOB_WAIT_S)))
    try:
        async for message in socket:  # No messages are expected; reading notices when the client leaves.
            if message.type is WSMsgType.ERROR:
                break
    finally:
        sender.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError, TimeoutError):
            await sender
    return socket


async def _send_all(socket: web.WebSocketResponse, events: AsyncIterator[JobEvent]) -> None:
    code = WSCloseCode.OK
    async for event in events:
        code = UNKNOWN_JOB_CODE if event.type == "unknown" else WSCloseCode.OK
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await socket.send_str(event.model_dump_json(exclude_none=True))
    await socket.close(code=code)


async def _end(coming: asyncio.Future, events: AsyncIterator[JobEvent]) -> None:
    coming.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await coming
    await events.aclose()  # pyright: ignore[reportAttributeAccessIssue] - a generator
