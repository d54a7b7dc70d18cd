"""`/openapi.json`, made from the contract, and the page at `/docs` that shows it. Nothing is fetched from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import swagger_ui_bundle
from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from bridge import __version__
from bridge.contract import (
    ErrorEnvelope,
    ImageGenRequest,
    ImageGenResponse,
    JobEvent,
    JobState,
    LoadModelResponse,
    ModelInfoResponse,
)

SCHEMA_REF = "#/components/schemas/{model}"
ERRORS = {
    "400": "The body is not JSON.",
    "401": "The service has a token, and the request does not.",
    "403": "A browser's request from another site.",
    "404": "No such model, mode or job.",
    "409": "The job was cancelled.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
    "422": "One or more values are wrong; details names every one.",
    "429": "The queue is full; Retry-After says when to try again.",
    "500": "The graph failed; code and message say the cause and the remedy.",
    "503": "ComfyUI, the worker or NATS is down or starting, or the model's weights cannot be had.",
    "504": "The job is not done yet; it goes on.",
}
SWAGGER_DIR = Path(str(swagger_ui_bundle.swagger_ui_path))
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>NeuroLux Image Generation</title>
<link rel="stylesheet" href="docs/assets/swagger-ui.css"></head>
<body><div id="ui"></div><script src="docs/assets/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "openapi.json", dom_id: "#ui", deepLinking: true, validatorUrl: null});</script>
</body></html>
"""


def _answer(model: type[BaseModel] | None, description: str, status: str = "200") -> dict[str, Any]:
    answer: dict[str, Any] = {"description": description}
    if model:
        answer["content"] = {"application/json": {"schema": {"$ref": SCHEMA_REF.format(model=model.__name__)}}}
    return {status: answer}


def _operation(
    summary: str,
    answers: dict[str, Any],
    errors: tuple[str, ...] = (),
    body: type[BaseModel] | None = None,
    parameters: tuple[dict[str, Any], ...] = (),
) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": dict(answers)}
    for status in errors:
        operation["responses"] |= _answer(ErrorEnvelope, ERRORS[status], status)
    if body:
        schema = {"$ref": SCHEMA_REF.format(model=body.__name__)}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if parameters:
        operation["parameters"] = list(parameters)
    return operation


def _in(where: str, name: str, kind: str = "string") -> dict[str, Any]:
    return {"in": where, "name": name, "required": True, "schema": {"type": kind}}


def document() -> dict[str, Any]:
    """The whole OpenAPI 3.1 document."""
    job, index, mode = _in("path", "job_id"), _in("path", "index", "integer"), _in("path", "name")
    generate_errors = ("400", "401", "403", "404", "413", "415", "422", "429", "503")
    image = {"200": {"description": "The picture.", "content": {"image/*": {}}}}
    events = {"101": {"description": "Text frames, each a JobEvent.", "content": {"application/json": {"schema": {
        "$ref": SCHEMA_REF.format(model="JobEvent")}}}}}  # fmt: skip
    paths = {
        "/v1/generate-image": {"post": _operation(
            "Draw, and answer with the pictures", _answer(ImageGenResponse, "The pictures."),
            (*generate_errors, "409", "500", "504"), ImageGenRequest)},
        "/v1/jobs": {"post": _operation(
            "Accept a request and answer at once", _answer(JobState, "Accepted.", "202"), generate_errors,
            ImageGenRequest)},
        "/v1/jobs/{job_id}": {
            "get": _operation("The state of a job", _answer(JobState, "The state."), ("404",), None, (job,)),
            "delete": _operation("Cancel a job", _answer(JobState, "What became of it."), ("404", "503"), None, (job,)),
        },
        "/v1/jobs/{job_id}/images/{index}": {"get": _operation("A picture", image, ("404",), None, (job, index))},
        "/v1/jobs/{job_id}/events": {"get": _operation("Events, over a WebSocket", events, ("404",), None, (job,))},
        "/v1/model-info": {"get": _operation("The models", _answer(ModelInfoResponse, "The models."), ("503",))},
        "/v1/load-model": {"post": _operation(
            "Load a model now", _answer(LoadModelResponse, "Loaded."), ("404", "422", "500", "503", "504"), None,
            (_in("query", "model_name"),))},
        "/v1/modes": {"get": _operation("The modes", _answer(None, "Their names."))},
        "/v1/modes/{name}": {"get": _operation(
            "What a mode takes", _answer(None, "JSON Schema."), ("404",), None, (mode,))},
        "/healthz": {"get": _operation("Whether the process serves", _answer(None, "It does."))},
        "/readyz": {"get": _operation("Whether a request would be run", _answer(None, "It would."), ("503",))},
    }  # fmt: skip
    wire = (ImageGenResponse, JobState, JobEvent, LoadModelResponse, ModelInfoResponse, ErrorEnvelope)
    _, schemas = models_json_schema(
        [(ImageGenRequest, "validation"), *((model, "serialization") for model in wire)], ref_template=SCHEMA_REF
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "NeuroLux Image Generation", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


async def openapi(_: web.Request) -> web.Response:
    """GET /openapi.json"""
    return web.json_response(document())


async def docs(_: web.Request) -> web.Response:
    """GET /docs"""
    return web.Response(text=PAGE, content_type="text/html")


def add_routes(app: web.Application) -> None:
    """The document, the page and the page's own files."""
    app.router.add_get("/openapi.json", openapi)
    app.router.add_get("/docs", docs)
    app.router.add_static("/docs/assets", SWAGGER_DIR)
