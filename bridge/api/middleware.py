"""What holds for every REST request: the trust boundary and the one error envelope.

The service listens on loopback, where every local program is trusted, and a web page is not: its browser sends an
Origin, and one that is not ours is refused. A service on a wider address demands a bearer token.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Collection

from aiohttp import web
from yarl import URL

from bridge.contract import ErrorBody, ErrorEnvelope
from bridge.errors import BodyTooLarge, BridgeError, ForeignOrigin, Unauthorized

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OPEN_PATHS = {"/healthz", "/readyz"}
"""Answered without a token: they tell a supervisor only whether the service is up."""


def error_response(error: BridgeError) -> web.Response:
    """The envelope of an error, with its status and Retry-After."""
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else {}
    return web.json_response(text=error.envelope().model_dump_json(), status=error.status, headers=headers)


@web.middleware
async def envelope(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error leaves as the envelope, those of aiohttp's own router included."""
    try:
        return await handler(request)
    except BridgeError as error:
        return error_response(error)
    except web.HTTPRequestEntityTooLarge as error:
        return error_response(BodyTooLarge(f"the body exceeds the limit of {request.client_max_size} bytes: {error}"))
    except web.HTTPError as error:
        message = f"{request.method} {request.path}: {error.reason}"
        if error.status == 404:
            message += "; /docs lists what there is"
        body = ErrorBody(code=error.reason.lower().replace(" ", "_"), message=message)
        response = web.json_response(text=ErrorEnvelope(error=body).model_dump_json(), status=error.status)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception as error:
        log.exception("%s %s failed", request.method, request.path)
        body = ErrorBody(code="internal_error", message=f"{type(error).__name__}; the service's log has the details")
        return web.json_response(text=ErrorEnvelope(error=body).model_dump_json(), status=500)


def same_origin(own_hosts: Collection[str] | None) -> Callable:
    """Refuse browsers that come from another site's page.

    `own_hosts` are the only names by which the service may be addressed (None: any). Without that check a page could
    point a name of its own at 127.0.0.1 after it was loaded (DNS rebinding), and would be of the same origin.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        host = parse_url(f"http://{request.host}").host
        if own_hosts is not None and host not in own_hosts:
            raise ForeignOrigin(
                f"this service is not called {host}; use {', '.join(sorted(own_hosts))}, or set a token"
            )
        if origin is not None and parse_url(origin).authority != request.host:
            raise ForeignOrigin(f"requests from pages of {origin} are refused; this service answers programs")
        return await handler(request)

    return middleware


def parse_url(text: str) -> URL:
    """A URL out of a header that anybody may have written. Raises ForeignOrigin where it is none."""
    try:
        return URL(text)
    except ValueError as error:
        raise ForeignOrigin(f"the Host or Origin of the request is not an address: {error}") from error


def bearer_token(token: str) -> Callable:
    """Demand `Authorization: Bearer <token>`."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        if request.path not in OPEN_PATHS and not hmac.compare_digest(given, token.encode()):
            raise Unauthorized("this service needs the header 'Authorization: Bearer <token>' with its token")
        return await handler(request)

    return middleware
