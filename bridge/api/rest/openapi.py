"""`/openapi.json`, generated from the declarations of the routes, and `/docs`, the page that shows it.

The page loads nothing from other hosts: its script and style come with a Python package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import swagger_ui_bundle
from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from bridge import __version__
from bridge.api.http.operations import ERRORS, PATH_PARAMETERS, Answer, Operation, Query, operation, routes_of
from bridge.api.http.prefix import prefix_of
from bridge.api.http.replies import GENERATION
from bridge.api.rest.modes import default_bodies, known_models, mode_paths
from bridge.contract import ErrorEnvelope, JobEvent, ModelInfoResponse

JSON = "application/json"
References = Mapping[tuple[Any, JsonSchemaMode], Mapping[str, Any]]
"""`{"$ref": …}` by model, and by whether the service reads (validation) or writes it (serialization)."""
ANY_MODE = ("/v1/generate-image", "/v1/jobs")
"""Endpoints whose body may be a request to any mode."""
RETRY_STATUSES = (429, 503)
SWAGGER_DIR = Path(str(swagger_ui_bundle.swagger_ui_path))
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>NeuroLux Image Generation</title>
<link rel="stylesheet" href="docs/assets/swagger-ui.css"></head>
<body><div id="ui"></div><script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body></html>
"""
START_SCRIPT = """SwaggerUIBundle({
  url: "openapi.json", dom_id: "#ui", deepLinking: true, validatorUrl: null, persistAuthorization: false,
});
"""


@dataclass
class Written:
    """The last generated document. Only changed modes and limits of models change it."""

    version: object = None
    models: ModelInfoResponse | None = None
    prefix: str = ""
    text: str = ""


WRITTEN = web.AppKey("written", Written)


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


def _answer(answer: Answer, refs: References) -> dict[str, Any]:
    entry: dict[str, Any] = {"description": answer.description}
    if answer.media:
        schema = refs[answer.model, "serialization"] if answer.model else answer.schema
        entry["content"] = {answer.media: {"schema": schema} if schema is not None else {}}
        entry["content"] |= {media: {} for media in answer.other_media}
    if answer.headers:
        entry["headers"] = {name: _header(text) for name, text in answer.headers.items()}
    if answer.links:
        entry["links"] = {
            name: {"operationId": name, "parameters": dict(places)} for name, places in answer.links.items()
        }
    return entry


def _error(status: int, refs: References) -> dict[str, Any]:
    entry = {"description": ERRORS[status], "content": {JSON: {"schema": refs[ErrorEnvelope, "serialization"]}}}
    if status in RETRY_STATUSES:
        entry["headers"] = {"Retry-After": _header("Seconds to wait before the next attempt.")}
    return entry


def _parameter(query: Query) -> dict[str, Any]:
    entry = {"in": query.where, "name": query.name, "required": query.required, "schema": dict(query.schema)}
    return entry | ({"description": query.description} if query.description else {})


def operation_object(declared: Operation, path: str, refs: References) -> dict[str, Any]:
    """One operation as an OpenAPI Operation Object."""
    responses = {str(status): _answer(answer, refs) for status, answer in declared.answers.items()}
    responses |= {str(status): _error(status, refs) for status in declared.statuses() if str(status) not in responses}
    entry: dict[str, Any] = {"operationId": declared.name, "summary": declared.summary, "responses": responses}
    names = re.findall(r"{(\w+)}", path)
    parameters = [_parameter(Query(name, PATH_PARAMETERS[name], required=True, where="path")) for name in names]
    parameters += [_parameter(query) for query in declared.parameters]
    if parameters:
        entry["parameters"] = parameters
    if declared.takes_body:
        content: dict[str, Any] = {media: {"schema": dict(schema)} for media, schema in declared.body_schemas.items()}
        if declared.body:
            content = {JSON: {"schema": refs[declared.body, "validation"]}, **content}
        entry["requestBody"] = {"required": True, "content": content}
    if not declared.open:
        entry["security"] = [{}, {"token": []}]  # {}: without a token in the settings, requests need none
    return entry


def document(app: web.Application) -> dict[str, Any]:
    """The whole OpenAPI 3.1 document of an application."""
    routes = [(method, path, found) for method, path, found in routes_of(app) if found]
    named: set[tuple[type[BaseModel], JsonSchemaMode]] = {
        (model, "serialization") for model in (ErrorEnvelope, JobEvent)
    }
    for _, _, declared in routes:
        named |= {(answer.model, "serialization") for answer in declared.answers.values() if answer.model}
        named |= {(declared.body, "validation")} if declared.body else set()
    in_order = sorted(named, key=lambda pair: (pair[0].__name__, pair[1]))
    refs, schemas = models_json_schema(in_order, ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for method, path, declared in routes:
        paths.setdefault(path, {})[method.lower()] = operation_object(declared, path, refs)
    if GENERATION in app:
        models = app[WRITTEN].models
        paths |= mode_paths(app[GENERATION], models, paths["/v1/modes/{name}"])
        for path in ANY_MODE:
            body = paths[path]["post"]["requestBody"]
            waits = path == "/v1/generate-image"
            body["content"] = default_bodies(app[GENERATION], models, body["content"], waits=waits)
    return {
        "openapi": "3.1.0",
        "info": {"title": "NeuroLux Image Generation", "version": __version__},
        "servers": [{"url": app[WRITTEN].prefix or "/"}],
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


@operation(
    "This API as OpenAPI", answers={200: Answer("An OpenAPI 3.1 document.", schema={"type": "object"})}, page=True
)
async def openapi(request: web.Request) -> web.Response:
    """GET /openapi.json"""
    written, generation = request.app[WRITTEN], request.app[GENERATION]
    written.models = await known_models(generation)
    limits = [(model.name, model.limits.model_dump_json()) for model in written.models.models] if written.models else []
    written.prefix = prefix_of(request)
    version = (written.prefix, generation.modes.version(), limits, written.models and written.models.default_model)
    if written.version != version:
        written.text, written.version = json.dumps(document(request.app)), version
    return web.json_response(text=written.text)


@operation("Documentation of this API", answers={200: Answer("A page.", media="text/html")}, page=True)
async def docs(_: web.Request) -> web.Response:
    """GET /docs"""
    return web.Response(text=PAGE, content_type="text/html")


@operation(
    "The script of the documentation page", answers={200: Answer("A script.", media="text/javascript")}, page=True
)
async def start_script(_: web.Request) -> web.Response:
    """GET /docs/start.js: a file of its own, so that the page needs no inline scripts."""
    return web.Response(text=START_SCRIPT, content_type="text/javascript")


def add_routes(app: web.Application) -> None:
    """Add the document, the page and its files."""
    app[WRITTEN] = Written()
    app.router.add_get("/openapi.json", openapi)
    app.router.add_get("/docs", docs)
    app.router.add_get("/docs/start.js", start_script)
    app.router.add_static("/docs/assets", SWAGGER_DIR)
