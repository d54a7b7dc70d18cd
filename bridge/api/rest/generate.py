"""The endpoints that generate images: a request becomes a job, and the caller waits for it or not."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

from aiohttp import web

from bridge.api.http.bodies import FORM, read_body
from bridge.api.http.limits import release_body
from bridge.api.http.operations import JOB_LINKS, Answer, Query, operation
from bridge.api.http.prefix import prefix_of
from bridge.api.http.replies import GENERATION, INDEX, reply
from bridge.api.rest.raw_images import TYPES, raw_image, wanted_formats, with_format
from bridge.contract import ImageGenRequest, ImageGenResponse, InvalidRequest, JobKind, JobState
from bridge.gateway.generation import Accepted, Generation
from bridge.gateway.idempotency import MAX_KEY_CHARS
from bridge.gateway.requests import Body

HANG_UP_POLL_S = 0.25
REPLAYED_HEADER = "Idempotency-Replayed"
KEY = Query(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS},
    "A repeated request with the same key returns the job of the first one. A different request with that key: 422.",
    where="header",
)
FORM_SCHEMA = {
    "type": "object",
    "description": "The fields of the JSON body as texts, or all of them as JSON in a part named `request`, and the "
    "images and files of the mode, each in a part named like its parameter.",
    "properties": {"request": {"type": "object", "description": "The JSON body."}},
    "additionalProperties": True,
}
REPLAYED = {REPLAYED_HEADER: "`true` if an earlier request with this Idempotency-Key made the job."}
LOCATION = {"Location": "The path of the job."}
IMAGES = Answer(
    "The images; as an image type, which `Accept` must prefer to JSON: the first one itself.",
    ImageGenResponse,
    headers=REPLAYED,
    links=JOB_LINKS,
    other_media=tuple(TYPES),
)

routes = web.RouteTableDef()


async def accept(request: web.Request, body: Body) -> web.Response:
    """Queue a request and answer with its job."""
    generation = request.app[GENERATION]
    body.refuse_cancel_on_disconnect()
    accepted = await generation.accept(body, _key(request), endpoint=request.path)
    state = await generation.submit(accepted)
    headers = {"Location": f"{prefix_of(request)}/v1/jobs/{quote(state.job_id)}", **_headers(accepted)}
    return reply(request.app[INDEX].view(state), 202, headers)


async def wait(request: web.Request, body: Body) -> web.Response:
    """Queue a request, wait for its end, and answer with the images."""
    generation = request.app[GENERATION]
    if formats := wanted_formats(request):
        body = with_format(request, body, formats)
    cancels = body.cancel_on_disconnect
    accepted = await generation.accept(body, _key(request), endpoint=request.path)
    del body  # Its images are in the store. The wait may be long, and other requests need the memory.
    release_body(request)
    run = generation.run(accepted)
    if cancels:
        state = await _while_connected(request, generation, accepted.job_id, asyncio.ensure_future(run))
    else:
        state = await run
    if formats and state.kind is JobKind.GENERATE:
        return await raw_image(request, state, formats, _headers(accepted))
    return reply(await generation.response(state), headers={**_headers(accepted), "Vary": "Accept"})


def _key(request: web.Request) -> str | None:
    """The Idempotency-Key. Raises InvalidRequest if there are several: readers differ in which of them counts."""
    keys = request.headers.getall(KEY.name, [])
    if len(keys) > 1:
        raise InvalidRequest(f"there are {len(keys)} headers {KEY.name}; send one", field=KEY.name)
    return keys[0] if keys else None


def _headers(accepted: Accepted) -> dict[str, str]:
    return {REPLAYED_HEADER: "true"} if accepted.replayed else {}


async def _while_connected(
    request: web.Request, generation: Generation, job_id: str, work: asyncio.Future[JobState]
) -> JobState:
    """Wait for a job, and cancel it when the caller hangs up."""
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=HANG_UP_POLL_S)
            if request.transport is None or request.transport.is_closing():
                await generation.cancel(job_id)
                break
        return await work
    except asyncio.CancelledError:
        # The server may cancel this handler when the caller hangs up.
        await asyncio.shield(generation.cancel(job_id))
        raise
    finally:
        work.cancel()


@routes.post("/v1/generate-image")
@operation(
    "Generate images and wait for them",
    answers={200: IMAGES},
    errors=(404, 406, 409, 410, 503, 504),
    body=ImageGenRequest,
    body_schemas={FORM: FORM_SCHEMA},
    parameters=[KEY],
    waits=True,
)
async def generate_image(request: web.Request) -> web.Response:
    """Generate images, and answer with them."""
    wanted_formats(request)  # Fail before a large body is read.
    return await wait(request, await read_body(request, request.app[GENERATION].limits))


@routes.post("/v1/jobs")
@operation(
    "Queue a request and return its job",
    answers={
        202: Answer("Accepted: the job is stored on disk.", JobState, headers={**LOCATION, **REPLAYED}, links=JOB_LINKS)
    },
    errors=(404, 409, 503),
    body=ImageGenRequest,
    body_schemas={FORM: FORM_SCHEMA},
    parameters=[KEY],
)
async def submit_job(request: web.Request) -> web.Response:
    """Queue a request, and answer at once with its job."""
    return await accept(request, await read_body(request, request.app[GENERATION].limits))
