"""The endpoints for the whole queue: its state, pause and resume, and cancelling all jobs."""

from __future__ import annotations

from aiohttp import web

from bridge.api.http.auth import CLIENT
from bridge.api.http.operations import Answer, Query, operation
from bridge.api.http.replies import CONTROLS, reply
from bridge.contract import MAX_REASON_CHARS, InvalidRequest, QueueCancelAnswer, QueueState

BOOLEANS = {"true": True, "1": True, "false": False, "0": False}

routes = web.RouteTableDef()


@routes.get("/v1/queue")
@operation("Get the state of the queue", answers={200: Answer("The state.", QueueState)}, errors=(503,))
async def queue_state(request: web.Request) -> web.Response:
    """Whether the queue is paused, and how many jobs wait and run."""
    return reply(await request.app[CONTROLS].state())


@routes.post("/v1/queue/pause")
@operation(
    "Pause the queue: running jobs continue, no other job starts",
    answers={200: Answer("The state of the queue.", QueueState)},
    errors=(422, 503),
    parameters=[
        Query("reason", {"type": "string", "maxLength": MAX_REASON_CHARS}, "Shown to everybody who asks for the state.")
    ],
)
async def pause_queue(request: web.Request) -> web.Response:
    """Pause the queue for all workers. The pause outlives restarts. Jobs are still accepted, and wait."""
    return reply(await request.app[CONTROLS].set_pause(request[CLIENT], request.query.get("reason")))


@routes.post("/v1/queue/resume")
@operation(
    "Resume the queue after a pause", answers={200: Answer("The state of the queue.", QueueState)}, errors=(503,)
)
async def resume_queue(request: web.Request) -> web.Response:
    """Resume the queue."""
    return reply(await request.app[CONTROLS].resume())


@routes.post("/v1/queue/cancel")
@operation(
    "Cancel all waiting jobs",
    answers={200: Answer("The number of jobs by outcome.", QueueCancelAnswer)},
    errors=(422, 503),
    parameters=[Query("running", {"type": "boolean"}, "Cancel the running jobs too.")],
    waits=True,
)
async def cancel_queue(request: web.Request) -> web.Response:
    """Cancel every job that waits."""
    text = request.query.get("running", "false")
    if text not in BOOLEANS:
        raise InvalidRequest(f"running {text!r} is neither true nor false", field="running")
    return reply(await request.app[CONTROLS].cancel_all(running=BOOLEANS[text]))
