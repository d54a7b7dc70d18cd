"""The route behind "Publish as mode" in the editor."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import nodes as comfy_nodes
from aiohttp import web

from ..publishing.saving import CannotPublish, Published, publish
from .refusals import refusal, unless_json
from .service import service_url

MODES_PATH = "/neurolux/modes/{name}"


def add_publish_route(routes: web.RouteTableDef) -> None:
    """Register ``POST /neurolux/modes/{name}`` with ``{"workflow", "api", "widgets", "overwrite", "dry_run"}``.

    The answer lists the parameters, what could not be one, the node classes that this ComfyUI lacks, and the names that
    requests can use no more.
    """

    @routes.post(MODES_PATH)
    async def publish_mode(request: web.Request) -> web.Response:
        if (refused := unless_json(request)) is not None:
            return refused
        try:
            body = await request.json()
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            return refusal(400, "not_json", f"the body is not JSON: {error}")
        if not isinstance(body, dict):
            return refusal(400, "not_json", "the body must be an object with workflow and api")
        overwrite, dry_run = body.get("overwrite") is True, body.get("dry_run") is True
        name = request.match_info["name"]
        try:
            published = await asyncio.to_thread(
                publish,
                name,
                body.get("workflow"),
                body.get("api"),
                LoadedClasses(),
                widgets=_widgets(body.get("widgets")),
                overwrite=overwrite,
                dry_run=dry_run,
            )
        except CannotPublish as error:
            return refusal(error.status, error.code, str(error))
        except OSError as error:
            return refusal(500, "cannot_write", f"the mode could not be saved: {error}")
        return web.json_response(_answer(published), status=200 if dry_run else 201)


class LoadedClasses:
    """The node classes of this ComfyUI."""

    def definition(self, class_type: str) -> Mapping[str, Any] | None:
        found = comfy_nodes.NODE_CLASS_MAPPINGS.get(class_type)  # pyright: ignore[reportAttributeAccessIssue]
        return found.INPUT_TYPES() if found is not None else None

    def title(self, class_type: str) -> str:
        return comfy_nodes.NODE_DISPLAY_NAME_MAPPINGS.get(class_type, class_type)  # pyright: ignore[reportAttributeAccessIssue]

    def is_output(self, class_type: str) -> bool:
        found = comfy_nodes.NODE_CLASS_MAPPINGS.get(class_type)  # pyright: ignore[reportAttributeAccessIssue]
        return bool(getattr(found, "OUTPUT_NODE", False))

    def knows(self, class_type: str) -> bool:
        return class_type in comfy_nodes.NODE_CLASS_MAPPINGS  # pyright: ignore[reportAttributeAccessIssue]


def _widgets(found: Any) -> dict[str, list[str]]:
    """The names of widgets by node; without what has another form."""
    given = found if isinstance(found, dict) else {}
    return {key: [str(name) for name in names] for key, names in given.items() if isinstance(names, list)}


def _answer(published: Published) -> dict[str, Any]:
    return {
        "name": published.name,
        "path": str(published.path),
        "endpoint": service_url() + published.endpoint,
        "parameters": published.interface.shown,
        "interface": published.interface.frozen,
        "results": [one["name"] for one in published.interface.results],
        "warnings": published.interface.warnings,
        "missing_nodes": published.missing,
        "changes": published.changes,
        "replaces": published.replaces,
    }
