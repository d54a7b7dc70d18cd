"""All routes of the REST API, and the endpoints for models and for the service itself."""

from __future__ import annotations

from aiohttp import web

from bridge.api.http.operations import NAME_SCHEMA, Answer, Query, operation
from bridge.api.http.replies import CONTROLS, GENERATION, PROBE, ROSTER, reply
from bridge.api.rest import archive as archive_rest
from bridge.api.rest import events as events_rest
from bridge.api.rest import generate as generate_rest
from bridge.api.rest import jobs as jobs_rest
from bridge.api.rest import modes as modes_rest
from bridge.api.rest import plan as plan_rest
from bridge.api.rest import queue as queue_rest
from bridge.api.rest import workers as workers_rest
from bridge.contract import LoadModelResponse, ModelInfoResponse, Unavailable, UnloadAnswer

routes = web.RouteTableDef()


@routes.get("/v1/model-info")
@operation(
    "List the models, and describe the machine", answers={200: Answer("The models.", ModelInfoResponse)}, errors=(503,)
)
async def model_info(request: web.Request) -> web.Response:
    """The models and the machine, as ComfyUI reports them now."""
    return reply(await request.app[GENERATION].models.ask())


@routes.post("/v1/load-model")
@operation(
    "Load a model and wait for it",
    answers={200: Answer("The model is loaded.", LoadModelResponse)},
    errors=(404, 409, 422, 503, 504),
    parameters=[Query("model_name", NAME_SCHEMA, "A name from model-info.", required=True)],
    waits=True,
)
async def load_model(request: web.Request) -> web.Response:
    """Load a model, and wait until it is on its device."""
    return reply(await request.app[GENERATION].load(request.query["model_name"]))


@routes.post("/v1/unload-model")
@operation(
    "Free device memory",
    answers={200: Answer("What was freed, by worker.", UnloadAnswer)},
    errors=(404, 422, 503),
    parameters=[
        Query("model_name", {"type": "string", "minLength": 1}, "A name from model-info. Default: every model."),
        Query("worker_id", {"type": "string", "minLength": 1}, "A name from workers. Default: every worker."),
    ],
)
async def unload_model(request: web.Request) -> web.Response:
    """Take one model, or all, out of memory, on one worker or on all. The next job loads its model again."""
    names = {name: request.query.get(name) for name in ("model_name", "worker_id")}
    return reply(await request.app[CONTROLS].unload(names["model_name"], names["worker_id"]))


@routes.get("/healthz")
@operation("Check that the process is alive", answers={200: Answer("It is.", schema={"type": "object"})}, open=True)
async def healthz(_: web.Request) -> web.Response:
    """Whether this process is alive."""
    return web.json_response({"status": "ok"})


@routes.get("/readyz")
@operation(
    "Check that a request would run now",
    answers={200: Answer("It would.", schema={"type": "object"})},
    errors=(503,),
    open=True,
)
async def readyz(request: web.Request) -> web.Response:
    """Whether a request would run now: NATS stores, there is disk space, a worker, its ComfyUI and the node pack all
    answer, and there is no pause."""
    generation = request.app[GENERATION]
    if not generation.queue.nc.is_connected:
        raise Unavailable("the connection to the NATS server is down; reconnecting")
    generation.check_disk()
    await request.app[PROBE].check()
    info = await generation.models.ask()
    if problem := request.app[ROSTER].problem():
        raise Unavailable(f"no worker takes jobs: {problem}")
    request.app[CONTROLS].refuse_paused()
    return web.json_response({"status": "ready", "device": info.device, "default_model": info.default_model})


def add_routes(app: web.Application) -> None:
    """Add every endpoint."""
    for module in (
        generate_rest,
        jobs_rest,
        archive_rest,
        events_rest,
        modes_rest,
        plan_rest,
        queue_rest,
        workers_rest,
    ):
        app.add_routes(module.routes)
    app.add_routes(routes)
