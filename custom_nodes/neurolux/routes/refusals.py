"""How the pack's routes refuse a request."""

from __future__ import annotations

from aiohttp import web

JSON = "application/json"


def refusal(status: int, code: str, message: str) -> web.Response:
    """An error, in the shape that all of them use."""
    return web.json_response({"error": {"code": code, "message": message}}, status=status)


def unless_json(request: web.Request) -> web.Response | None:
    """A refusal of a body that is not declared as JSON; None for one that is.

    A web page of another site can post a form here without a preflight request, but not JSON.
    """
    return None if request.content_type == JSON else refusal(415, "not_json", f"send {JSON}")
