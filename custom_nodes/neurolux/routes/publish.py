"""The route behind "Publish as mode" in the editor."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from .publishing import CannotPublish, publish

MODES_PATH = "/neurolux/modes/{name}"
JSON = "application/json"


def add_publish_route(routes: web.RouteTableDef) -> None:
    """Register ``POST /neurolux/modes/{name}`` with ``{"workflow", "api", "overwrite"}``."""

    @routes.post(MODES_PATH)
    async def publish_mode(request: web.Request) -> web.Response:
        # A web page of another site can post a form here without a preflight request, but not JSON.
        if request.content_type != JSON:
            return refusal(415, "not_json", f"send {JSON}")
        try:
            body = await request.json()
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            return refusal(400, "not_json", f"the body is not JSON: {error}")
        if not isinstance(body, dict):
            return refusal(400, "not_json", "the body must be an object with workflow and api")
        overwrite = body.get("overwrite") is True
        name = request.match_info["name"]
        try:
            published = await asyncio.to_thread(
                publish, name, body.get("workflow"), body.get("api"), overwrite=overwrite
            )
        except CannotPublish as error:
            return refusal(error.status, error.code, str(error))
        except OSError as error:
            return refusal(500, "cannot_write", f"the mode could not be saved: {error}")
        return web.json_response(
            {"name": published.name, "path": str(published.path), "endpoint": published.endpoint}, status=201
        )


def refusal(status: int, code: str, message: str) -> web.Response:
    """An error, in the shape that the pack's other routes use."""
    return web.json_response({"error": {"code": code, "message": message}}, status=status)
