"""Middleware for every REST request: a log line, a request id, the error envelope, and security headers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from uuid import uuid4

from aiohttp import web

from bridge import logs, tracing
from bridge.api.http.auth import CLIENT, challenge
from bridge.api.http.cors import cors_headers
from bridge.api.http.limits import RATE, rate_headers
from bridge.api.http.operations import Handler, Middleware, declared
from bridge.api.http.replies import error_reply
from bridge.api.limits import RateLimiter
from bridge.api.metrics import Metrics
from bridge.contract import JOB_ID_PATTERN, BodyTooLarge, BridgeError, SlowBody, Unauthorized, shorten

log = logging.getLogger(__name__)

REQUEST_ID = web.RequestKey("request_id", str)
REQUEST_ID_HEADER = "X-Request-Id"
OWN_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""A request id from the caller, or a proxy, that is safe to use in logs and headers."""
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
CLIENT_LEFT = 499
"""In logs and metrics: the client left before the answer. (nginx uses the same number.)"""
SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
NO_PAGE = "default-src 'none'; frame-ancestors 'none'"
DOCS_PAGE = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"


def error_response(error: BridgeError) -> web.Response:
    """The response for an error: its envelope, status and Retry-After."""
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else {}
    return web.json_response(text=error.envelope().model_dump_json(), status=error.status, headers=headers)


@web.middleware
async def envelope(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into the envelope, including those of aiohttp's router."""
    try:
        return await handler(request)
    except SlowBody as error:
        response = error_response(error)
        # The rest of the body is not read, so the connection cannot be used again.
        response.force_close()
        request.content.feed_eof()
        return response
    except Unauthorized as error:
        response = error_response(error)
        response.headers["WWW-Authenticate"] = challenge(request)
        return response
    except BridgeError as error:
        return error_response(error)
    except web.HTTPRequestEntityTooLarge as error:
        return error_response(BodyTooLarge(f"the body exceeds the limit of {request.client_max_size} bytes: {error}"))
    except web.RequestPayloadError as error:
        if _has_left(request):
            return _nobody_reads()
        reason = str(error).rpartition("\n")[2].strip()
        return error_reply(400, "bad_request", f"the body cannot be read: {shorten(reason, 200)}")
    except web.HTTPError as error:
        # aiohttp's own text where it says more, such as what is wrong with a WebSocket handshake.
        reason = error.reason if (error.text or "").startswith(f"{error.status}:") else shorten(error.text or "", 200)
        message = f"{shorten(request.method)} {shorten(request.path)}: {reason}"
        if error.status == 404:
            message += "; /docs lists the endpoints"
        response = error_reply(error.status, error.reason.lower().replace(" ", "_"), message)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception as error:
        if isinstance(error, ConnectionError) and _has_left(request):
            return _nobody_reads()
        request_id = request[REQUEST_ID]
        log.exception("%s failed", route_of(request))
        message = f"{type(error).__name__}; the service's log has the details under request {request_id}"
        return error_reply(500, "internal_error", message)


def _has_left(request: web.Request) -> bool:
    """Whether the client closed the connection."""
    return request.transport is None or request.transport.is_closing()


def _nobody_reads() -> web.Response:
    """What the log and the metrics say of a client that left in the middle of its body. Nothing is sent."""
    response = web.Response(status=CLIENT_LEFT, reason="Client Closed Request")
    response.force_close()
    return response


def route_of(request: web.Request) -> str:
    """The pattern of the route. Paths themselves are unbounded, so they make no labels."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "(none)"


def accounted(metrics: Metrics) -> Middleware:
    """Give the request its id, and log and count it when it ends. The outermost middleware."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get(REQUEST_ID_HEADER, "")
        request_id = request[REQUEST_ID] = given if OWN_REQUEST_ID.fullmatch(given) else uuid4().hex
        clock = asyncio.get_running_loop().time
        began, status = clock(), CLIENT_LEFT
        ids = {"request_id": request_id}
        job_id = request.match_info.get("job_id", "")
        if re.fullmatch(JOB_ID_PATTERN, job_id):
            ids["job_id"] = job_id
        with _traced(request) as span, logs.about(**ids):
            try:
                response = await handler(request)
                status = response.status
                return response
            finally:
                span.set(status=status, job_id=ids.get("job_id"))
                if status >= 500:
                    span.fail(f"HTTP {status}")
                _write_down(request, status, clock() - began, metrics)

    return middleware


def _traced(request: web.Request) -> contextlib.AbstractContextManager[tracing.Span]:
    """The span of a request. Probes, which come every few seconds, have none."""
    operation = declared(request.match_info.handler)
    if operation is not None and operation.open:
        return contextlib.nullcontext(tracing.Span(None))
    method = request.method if request.method in METHODS else "OTHER"
    return tracing.span(f"{method} {route_of(request)}", "server", tracing.of(request.headers))


def _write_down(request: web.Request, status: int, seconds: float, metrics: Metrics) -> None:
    method = request.method if request.method in METHODS else "OTHER"
    route = route_of(request)
    metrics.request_ended(method, route, status, seconds)
    operation = declared(request.match_info.handler)
    probe = operation is not None and operation.open and status < 500
    level = logging.WARNING if status >= 500 else logging.DEBUG if probe else logging.INFO
    facts = logs.fields(
        method=method,
        route=route,
        status=status,
        ms=round(seconds * 1000, 1),
        client=request.get(CLIENT, request.remote),
    )
    log.log(level, "%s %s", method, route, extra=facts)


def common_headers(limiter: RateLimiter, *, cors: bool = False):
    """A signal handler that sets the headers of every response, including streams and pages."""

    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        headers = {**SAFE_HEADERS, "Content-Security-Policy": NO_PAGE, "Cache-Control": "no-store"}
        if request.path.startswith("/docs"):
            headers |= {"Content-Security-Policy": DOCS_PAGE, "Cache-Control": "no-cache"}
        headers |= rate_headers(limiter, request.get(RATE)) | cors_headers(request)
        if cors:
            response.headers["Vary"] = ", ".join(filter(None, (response.headers.get("Vary"), "Origin")))
        if request_id := request.get(REQUEST_ID):
            headers[REQUEST_ID_HEADER] = request_id
        for name, value in headers.items():
            response.headers.setdefault(name, value)

    return prepare
