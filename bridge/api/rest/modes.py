"""Every saved graph as an endpoint. Changed files are read again; a broken one does not affect the others."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

from aiohttp import web

from bridge.api.http.bodies import FORM, JSON, REQUEST_PART, read_body
from bridge.api.http.operations import Answer, Query, operation
from bridge.api.http.replies import GENERATION, reply
from bridge.api.rest.generate import FORM_SCHEMA, IMAGES, KEY, LOCATION, REPLAYED, accept, wait
from bridge.api.rest.raw_images import wanted_formats
from bridge.contract import (
    DEFAULT_MODE,
    BridgeError,
    ErrorDetail,
    InvalidRequest,
    JobState,
    ModelInfoResponse,
    ModeList,
    ModeSummary,
    shown,
)
from bridge.gateway.generation import Generation
from bridge.gateway.requests import Body
from bridge.modes.library import ModeLibrary
from bridge.modes.parameters import ParameterKind
from bridge.modes.schema import form_schema, request_schema

MODELS_WAIT_S = 2.0
"""How long a description waits for a worker to name its models. Without them it holds the limits of every request."""
ASYNC_PREFERENCE = "respond-async"
PREFER = Query(
    "Prefer",
    {"type": "string"},
    f"`{ASYNC_PREFERENCE}` (RFC 7240): do not wait; answer 202 with the job.",
    where="header",
)

routes = web.RouteTableDef()


def summary(library: ModeLibrary, name: str) -> ModeSummary:
    """The entry of a mode in a list. A broken mode has an error and nothing else."""
    try:
        mode = library.get(name)
    except BridgeError as error:
        return ModeSummary(name=name, title=name, description="", parameters=[], images=[], error=error.body())
    by_kind = {
        kind: [key for key, parameter in mode.parameters.items() if parameter.kind is kind] for kind in ParameterKind
    }
    return ModeSummary(
        name=name,
        title=mode.title,
        description=mode.description,
        parameters=list(mode.parameters),
        images=by_kind[ParameterKind.IMAGE],
        files=by_kind[ParameterKind.FILE],
    )


@routes.get("/v1/modes")
@operation(
    "List the saved graphs", answers={200: Answer("All graphs; those that cannot be used have an error.", ModeList)}
)
async def modes(request: web.Request) -> web.Response:
    """The saved graphs."""
    library = request.app[GENERATION].modes
    names = library.names()
    return reply(ModeList(modes=names, details=[summary(library, name) for name in names]))


@routes.get("/v1/modes/{name}")
@operation(
    "Get the parameters of a saved graph as JSON Schema",
    answers={200: Answer("The JSON Schema of the body for POST to the same path.", schema={"type": "object"})},
    errors=(404, 503),
)
async def mode_schema(request: web.Request) -> web.Response:
    """The parameters of a saved graph, as JSON Schema."""
    generation = request.app[GENERATION]
    mode = generation.modes.get(request.match_info["name"])
    models = await known_models(generation)
    return web.json_response(request_schema(await generation.offers.fill(mode), models, generation.limits.request.most))


async def known_models(generation: Generation) -> ModelInfoResponse | None:
    """The models, whose limits schemas hold; None while no worker answers."""
    try:
        async with asyncio.timeout(MODELS_WAIT_S):
            return await generation.models.recent()
    except (BridgeError, TimeoutError):
        return None


@routes.post("/v1/modes/{name}")
@operation(
    "Run a saved graph",
    answers={
        200: IMAGES,
        202: Answer(
            "Accepted, for a request with `Prefer: respond-async`.", JobState, headers={**LOCATION, **REPLAYED}
        ),
    },
    errors=(404, 406, 409, 410, 503, 504),
    body_schemas={
        JSON: {"type": "object", "description": "The schema that GET returns for the same path."},
        FORM: FORM_SCHEMA,
    },
    parameters=[PREFER, KEY],
    waits=True,
)
async def run_mode(request: web.Request) -> web.Response:
    """Run a saved graph with the values in the body."""
    name = request.match_info["name"]
    request.app[GENERATION].modes.get(name)  # Fail before a large body is read.
    given = ",".join(request.headers.getall("Prefer", []))  # RFC 7240: several headers are one list.
    preferences = [part.partition(";")[0].strip().lower() for part in given.split(",")]
    if ASYNC_PREFERENCE in preferences:
        response = await accept(request, await _read_for(name, request))
        response.headers["Preference-Applied"] = ASYNC_PREFERENCE
        return response
    wanted_formats(request)  # Fail before a large body is read.
    return await wait(request, await _read_for(name, request))


async def _read_for(name: str, request: web.Request) -> Body:
    """The body of a request to a mode. Raises what `read_body` raises, and InvalidRequest for one of another mode."""
    body = await read_body(request, request.app[GENERATION].limits)
    given = body.values.get("mode")
    if given not in (None, name):
        message = f"the path already names the mode {shown(name)}; leave mode out of the body"
        raise InvalidRequest.of([ErrorDetail(field="mode", message=message)])
    return Body({**body.values, "mode": name}, body.files, body.text_bytes, body.is_form)


def default_bodies(
    generation: Generation, models: ModelInfoResponse | None, content: dict[str, Any], *, waits: bool
) -> dict[str, Any]:
    """The bodies, by media type, of an endpoint that takes any mode: that of the default mode, or with another `mode`
    the general one in `content` and the parameters of that mode."""
    most = generation.limits.request.most
    try:
        mode = generation.modes.get(DEFAULT_MODE)
    except BridgeError:
        return content
    own, form = request_schema(mode, models, most), form_schema(mode, models, most)
    other: dict[str, Any] = {
        "description": "For other modes: the fields that GET /v1/modes/{name} lists, and the name of the mode.",
        "allOf": [content[JSON]["schema"]],
        "required": ["mode"],
        "properties": {"mode": {"type": "string", "minLength": 1, "not": {"const": DEFAULT_MODE}}},
    }
    if not waits:
        for schema, values in ((own, [False, None]), (other, [False, None]), (form, [False])):
            schema["properties"]["cancel_on_disconnect"] = {"enum": values, "description": "Nobody waits here."}
    whole = {"anyOf": [own, other]}
    return {JSON: {"schema": whole}, FORM: {"schema": {"anyOf": [form, whole_form(whole)]}}}


def whole_form(body: dict[str, Any]) -> dict[str, Any]:
    """A form with the whole `body` as JSON in one part."""
    return {"type": "object", "properties": {REQUEST_PART: body}, "required": [REQUEST_PART]} | {
        "additionalProperties": False,
        "description": "All fields as JSON. Files may be parts of their own beside it, each named like its parameter.",
    }


def mode_paths(generation: Generation, models: ModelInfoResponse | None, described: dict[str, Any]) -> dict[str, Any]:
    """An entry in OpenAPI's `paths` for every mode that can be used: `described`, the entry of `/v1/modes/{name}`, with
    the body of that mode in place of the general one.

    Options that are files are left out: they change, and only a worker knows them. `/v1/modes/{name}` has them.
    """
    paths: dict[str, Any] = {}
    library, most = generation.modes, generation.limits.request.most
    for name in library.names():
        try:
            mode = library.get(name)
        except BridgeError:
            continue  # GET /v1/modes says why.
        methods: dict[str, Any] = {}
        for method, entry in described.items():
            parameters = [each for each in entry.get("parameters", []) if each["in"] != "path"]
            methods[method] = {**entry, "parameters": parameters, "operationId": f"{entry['operationId']}-{name}"}
        content = {
            JSON: {"schema": request_schema(mode, models, most)},
            FORM: {"schema": form_schema(mode, models, most)},
        }
        summary_text = f"{mode.title}: {mode.description}" if mode.description else mode.title
        methods["post"] = {
            **methods["post"],
            "summary": summary_text,
            "requestBody": {"required": True, "content": content},
        }
        paths[f"/v1/modes/{quote(name)}"] = methods
    return paths
