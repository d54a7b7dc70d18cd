"""The doors that draw: a request becomes a job, which is waited for or left to itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import quote
from uuid import uuid4

from aiohttp import web

from bridge.api.rest.bodies import FORM, fingerprint, read_body
from bridge.api.rest.limits import release_body
from bridge.api.rest.operations import Answer, Query, operation
from bridge.api.rest.replies import GENERATION, IDEMPOTENCY, INDEX, reply
from bridge.contract import BridgeError, ImageGenRequest, ImageGenResponse, Job, JobState, UnknownJob
from bridge.gateway.cancellation import cancel
from bridge.gateway.generation import Body, Generation, refuse_cancel_on_disconnect, wants_cancel_on_disconnect
from bridge.gateway.idempotency import MAX_KEY_CHARS, Claim

HANG_UP_POLL_S = 0.25
REPLAYED_HEADER = "Idempotency-Replayed"
KEY = Query(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS},
    "The same key with the same request is answered with the job that the first one made; with another request: 422.",
    where="header",
)
FORM_SCHEMA = {
    "type": "object",
    "description": "The fields of the JSON body as texts, or all of them as JSON in a part named `request`; and the "
    "images of the mode's Image parameters, each a part of its parameter's name.",
    "properties": {"request": {"type": "string", "contentMediaType": "application/json"}},
    "additionalProperties": True,
}
REPLAYED = {REPLAYED_HEADER: "`true` where an earlier request with this Idempotency-Key made the job."}
LOCATION = {"Location": "Where the job is."}

routes = web.RouteTableDef()


class Accepted(NamedTuple):
    """What a request led to. `job` is None where the job had been queued before."""

    job: Job | None
    state: JobState | None
    replayed: bool

    @property
    def headers(self) -> dict[str, str]:
        return {REPLAYED_HEADER: "true"} if self.replayed else {}


async def prepare(request: web.Request, body: Body) -> Accepted:
    """The job of a request, not queued yet; or the state of the one that its Idempotency-Key stands for."""
    generation = request.app[GENERATION]
    key = request.headers.get(KEY.name)
    if key is None:
        return Accepted(await generation.job(body), None, replayed=False)
    given = body.values.get("job_id")
    job_id = given if isinstance(given, str) else str(uuid4())
    claim = Claim(job_id=job_id, fingerprint=fingerprint(body, request.path))
    keys = request.app[IDEMPOTENCY]
    first = await keys.claim(key, claim)
    replayed = first != claim
    if replayed or given is not None:
        try:
            return Accepted(None, await generation.queue.state(first.job_id), replayed)
        except UnknownJob:
            pass  # Whoever claimed the key has not come to queue the job.
    try:
        job = await generation.job(replace(body, values={**body.values, "job_id": first.job_id}))
    except BridgeError:
        await keys.release(key)
        raise
    return Accepted(job, None, replayed)


async def accept(request: web.Request, body: Body) -> web.Response:
    """Queue a request and answer with its job."""
    generation = request.app[GENERATION]
    refuse_cancel_on_disconnect(body)
    accepted = await prepare(request, body)
    state = accepted.state
    if accepted.job is not None:
        state = await generation.queue.submit(accepted.job)
    assert state is not None
    headers = {"Location": f"/v1/jobs/{quote(state.job_id)}", **accepted.headers}
    return reply(request.app[INDEX].view(state), 202, headers)


async def wait(request: web.Request, body: Body) -> web.Response:
    """Queue a request, wait for its end, and answer with the images."""
    generation = request.app[GENERATION]
    leaves = wants_cancel_on_disconnect(body)
    accepted = await prepare(request, body)
    del body  # Its images are in the store: the wait may be long, and others need the memory.
    release_body(request)
    if accepted.job is not None:
        job_id, work = accepted.job.job_id, generation.run(accepted.job)
    else:
        assert accepted.state is not None
        job_id, work = accepted.state.job_id, generation.await_end(accepted.state)
    if leaves:
        state = await _while_connected(request, generation, job_id, asyncio.ensure_future(work))
    else:
        state = await work
    return reply(await generation.response(state), headers=accepted.headers)


async def _while_connected(
    request: web.Request, generation: Generation, job_id: str, work: asyncio.Future[JobState]
) -> JobState:
    """Wait for a job, and cancel it when the caller hangs up."""
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=HANG_UP_POLL_S)
            if request.transport is None or request.transport.is_closing():
                await cancel(generation.queue, job_id)
                break
        return await work
    except asyncio.CancelledError:
        # The server may tell of a caller who hung up by cancelling this handler.
        await asyncio.shield(cancel(generation.queue, job_id))
        raise
    finally:
        work.cancel()


@routes.post("/v1/generate-image")
@operation(
    "Draw, and answer with the images",
    answers={200: Answer("The images.", ImageGenResponse, headers=REPLAYED)},
    errors=(404, 409, 410, 503, 504),
    body=ImageGenRequest,
    body_schemas={FORM: FORM_SCHEMA},
    parameters=[KEY],
    waits=True,
)
async def generate_image(request: web.Request) -> web.Response:
    """Draw, and answer with the images."""
    return await wait(request, await read_body(request, request.app[GENERATION].limits))


@routes.post("/v1/jobs")
@operation(
    "Accept a request and answer at once",
    answers={202: Answer("Accepted: the job is on disk.", JobState, headers={**LOCATION, **REPLAYED})},
    errors=(404, 409, 503),
    body=ImageGenRequest,
    body_schemas={FORM: FORM_SCHEMA},
    parameters=[KEY],
)
async def submit_job(request: web.Request) -> web.Response:
    """Accept the same request, and answer at once with the job."""
    return await accept(request, await read_body(request, request.app[GENERATION].limits))
