"""Web pages of other origins that may use the service: those that the setting `cors_origins` lists. None by default.

Credentials are never allowed: such a page sends the token in a header, as programs do. Errors carry the headers too, or
the page could not read them.
"""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import web

from bridge.api.http.operations import Handler, Middleware

ALLOWED_ORIGIN = web.RequestKey("allowed_origin", str)
"""The Origin of a request that comes from a page of the list."""
REQUEST_HEADERS = (
    *("Accept", "Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "If-Range", "Last-Event-ID"),
    *("Prefer", "Range", "X-Request-Id", "traceparent", "tracestate"),
)
RESPONSE_HEADERS = (
    *("Content-Disposition", "Content-Location", "Content-Range", "ETag", "Idempotency-Replayed", "Imagegen-Images"),
    *("Imagegen-Job", "Imagegen-Mode", "Imagegen-Model", "Imagegen-Seed", "Imagegen-Warnings", "Location"),
    *("Preference-Applied", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"),
)
PREFLIGHT_S = 3600


def preflight(origins: Collection[str]) -> Middleware:
    """Answer the question that a browser asks before a request that a form could not send. It carries no token."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        asked = request.headers.get("Access-Control-Request-Method")
        refusal = request.match_info.http_exception
        if not origins or request.method != "OPTIONS" or asked is None or ALLOWED_ORIGIN not in request:
            return await handler(request)
        if not isinstance(refusal, web.HTTPMethodNotAllowed):  # no such path: a 404
            return await handler(request)
        headers = {
            "Access-Control-Allow-Methods": ", ".join(sorted(refusal.allowed_methods)),
            "Access-Control-Allow-Headers": ", ".join(REQUEST_HEADERS),
            "Access-Control-Max-Age": str(PREFLIGHT_S),
        }
        if request.headers.get("Access-Control-Request-Private-Network") == "true":
            headers["Access-Control-Allow-Private-Network"] = "true"
        return web.Response(status=204, headers=headers)

    return middleware


def cors_headers(request: web.BaseRequest) -> dict[str, str]:
    """The headers of any response to a page of the list."""
    origin = request.get(ALLOWED_ORIGIN)
    if origin is None:
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": ", ".join(RESPONSE_HEADERS),
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
