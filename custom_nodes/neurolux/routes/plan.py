"""The route that returns a memory plan: where each part of a model would live, on this machine or on another."""

from __future__ import annotations

import asyncio
from typing import Any

import comfy.model_management as mm
from aiohttp import web

from ..errors import InvalidParameter, ModelNotFound, NeuroLuxError
from ..library.adapter_folders import locate
from ..library.known_models import comfy_shelf, known_models
from ..library.local_models import main_file, measured_file
from ..library.plan_query import asked_shapes, parse_query, plan_document, plan_for, workload_for
from ..loading.components import shapes_of, vae_must_upcast
from ..loading.store import pipelines
from ..memory.machine import this_machine
from ..weights.download.sources import local_files

PLAN_PATH = "/neurolux/plan"
STATUS = {ModelNotFound: 404, InvalidParameter: 422}
CODES = {ModelNotFound: "unknown_model", InvalidParameter: "invalid_request"}


def add_plan_route(routes: web.RouteTableDef) -> None:
    """Register ``GET /neurolux/plan?model=…``; its other parameters are ``plan_query.FIELDS``."""

    @routes.get(PLAN_PATH)
    async def plan(request: web.Request) -> web.Response:
        try:
            return web.json_response(await asyncio.to_thread(plan_answer, dict(request.query)))
        except NeuroLuxError as error:
            return web.json_response({"error": error_document(error)}, status=STATUS.get(type(error), 503))


def plan_answer(values: dict[str, str]) -> dict[str, Any]:
    """The plan as JSON. Raises ModelNotFound, InvalidParameter, or WeightsMissing for files that cannot be read."""
    catalog = known_models()
    name = values.pop("model", "") or catalog.default
    query = parse_query(values)
    path = main_file(name, comfy_shelf()) if name not in catalog.models else None
    if path is not None:
        found = measured_file(path, comfy_shelf(), catalog)
        model, shapes, upcast = found.model, found.shapes, found.force_upcast_vae
    else:
        model = catalog.get(name)
        shapes, upcast = model.components, model.force_upcast_vae
        steps = workload_for(model, query).steps
        files = local_files(model, model.variant(steps))
        if files is not None:
            shapes, upcast = shapes_of(model, model.variant(steps), files), vae_must_upcast(files)
    shapes = asked_shapes(model, shapes, query, locate)
    here = this_machine(mm.get_torch_device(), pipelines.droppable_ram())
    return plan_document(model, *plan_for(model, shapes, query, here, force_upcast_vae=upcast))


def error_document(error: NeuroLuxError) -> dict[str, Any]:
    """An error for the wire."""
    document: dict[str, Any] = {"code": CODES.get(type(error), "weights_missing"), "message": str(error)}
    if isinstance(error, InvalidParameter):
        document["field"] = error.field
    if isinstance(error, ModelNotFound):
        document["field"], document["known"] = "model", list(error.known)
    return document
