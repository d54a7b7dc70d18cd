"""Puts the guard in front of ComfyUI's server: as the outermost middleware, and as a hook on every answer's headers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import comfy.cli_args
import folder_paths
import nodes as comfy_nodes
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from .answers import core_route, protect
from .callers import Refusal, refused
from .names import BadName, bad_names, is_core_module, leaves_folder, suspicious
from .settings import GUARD_VARIABLE, GuardSettings, guard_settings
from .token import TokenCheck

OWN_ROUTES = "/neurolux/"
PROMPT_ROUTE = "/prompt"
NAMED_FILES = ("/experiment/models/", "/view_metadata/")
CHANGES = (hdrs.METH_POST, hdrs.METH_PUT, hdrs.METH_PATCH, hdrs.METH_DELETE)
JSON = "application/json"

_log = logging.getLogger(__name__)


def add_guard(app: web.Application) -> None:
    """Put the guard before everything that `app` answers."""
    settings = guard_settings(arguments=comfy.cli_args.args)
    if not settings.enabled:
        _log.warning("NeuroLux: %s=off, so web pages of any site can use this ComfyUI", GUARD_VARIABLE)
        return
    try:
        app.middlewares.insert(0, guard(settings))
        app.on_response_prepare.append(answer_hook(settings))
    except RuntimeError:  # aiohttp: the application is frozen
        _log.error("NeuroLux: the pack was loaded after the server had started, so its guard is off; restart ComfyUI")


def answer_hook(settings: GuardSettings) -> Any:
    """The hook that sets the headers of every answer, also of streams, errors and files."""

    async def set_headers(request: web.Request, response: web.StreamResponse) -> None:
        protect(request, response, frames=settings.check_callers)

    return set_headers


def guard(settings: GuardSettings) -> Any:
    """The middleware."""
    tokens = TokenCheck(settings.token) if settings.token else None
    reported: set[str] = set()

    def answer(refusal: Refusal) -> web.Response:
        if refusal.code not in reported:  # once a kind: a hostile page may ask thousands of times
            reported.add(refusal.code)
            _log.warning("NeuroLux: refused a request: %s", refusal.message)
        document = {"error": {"code": refusal.code, "message": refusal.message}}
        return web.json_response(document, status=refusal.status)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if settings.check_callers:
            refusal = refused(settings, request.method, request.path, request.headers)
            if refusal is not None:
                return answer(refusal)
        if tokens is not None:
            page = tokens.answer(request)
            if page is not None:
                return page
        route = core_route(request)
        if request.method in CHANGES and route.startswith(OWN_ROUTES) and request.content_type != JSON:
            # A page of another site can post a form here without a preflight request, but not JSON.
            return answer(Refusal(415, "not_json", f"send {JSON}, not {request.content_type}"))
        if route.startswith(NAMED_FILES):
            name = bad_file(request)
            if name is not None:
                return answer(Refusal(400, "bad_name", f"{name[:200]!r} leads out of its folder"))
        if request.method == hdrs.METH_POST and route == PROMPT_ROUTE:
            try:
                found = await bad_names_of(request)
            except RecursionError:  # ComfyUI might still take it, and with it a name that was not reached
                return answer(Refusal(400, "bad_graph", "the graph is nested too deeply"))
            if found:
                return web.json_response(prompt_error(found), status=400)
        return await handler(request)

    return check


def bad_file(request: web.Request) -> str | None:
    """The name of a model's file or folder that leads out of its folder (GHSA-pj59-g5vv-74q4)."""
    named = [*request.match_info.values(), *request.query.getall("filename", [])]
    return next((name for name in named if leaves_folder(name)), None)


async def bad_names_of(request: web.Request) -> list[BadName]:
    """The bad names in the graph that is to be queued. A body that is no graph is left to ComfyUI's own checks."""
    try:
        text = await request.text()
        body = json.loads(text) if suspicious(text) else None
    except (ValueError, LookupError):
        return []
    if not isinstance(body, dict):
        return []
    kinds = ("input", "output", "temp")
    folders = [folder for kind in kinds if (folder := folder_paths.get_directory_by_type(kind)) is not None]
    return list(bad_names(body.get("prompt"), schema_of, is_core, folders))


def schema_of(class_type: str) -> Mapping[str, Any] | None:
    """The inputs of a node class; those of a broken one are unknown, so that every bad name in them counts."""
    found = comfy_nodes.NODE_CLASS_MAPPINGS.get(class_type)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return found.INPUT_TYPES() if found is not None else None
    except Exception:
        _log.warning("NeuroLux: the inputs of %s cannot be read", class_type, exc_info=True)
        return {}


def is_core(class_type: str) -> bool:
    """Whether a node class is part of ComfyUI."""
    found = comfy_nodes.NODE_CLASS_MAPPINGS.get(class_type)  # pyright: ignore[reportAttributeAccessIssue]
    return is_core_module(getattr(found, "RELATIVE_PYTHON_MODULE", None) or "nodes")


def prompt_error(found: list[BadName]) -> dict[str, Any]:
    """The refusal of a graph, in ComfyUI's own form: the editor marks the nodes."""
    errors: dict[str, dict[str, Any]] = {}
    for bad in found:
        node = errors.setdefault(bad.node_id, {"errors": [], "dependent_outputs": [], "class_type": bad.class_type})
        details = f"{bad.input}: {bad.value[:200]!r} leads out of its folder; use a name inside it"
        error = {"type": "custom_validation_failed", "message": "Invalid file name", "details": details}
        node["errors"].append({**error, "extra_info": {"input_name": bad.input}})
    first = next(iter(errors.values()))["errors"][0]
    top = {"type": "prompt_outputs_failed_validation", "message": first["message"], "details": first["details"]}
    return {"error": {**top, "extra_info": {}}, "node_errors": errors}
