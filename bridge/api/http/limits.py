"""The limits of `bridge.api.limits` applied to REST requests: a middleware, and the RateLimit headers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from aiohttp import web

from bridge.api.http.auth import CLIENT
from bridge.api.http.operations import Handler, Middleware, declared
from bridge.api.limits import BodyLease, BodyMemory, RateLimiter, Verdict, Waits, too_many
from bridge.contract import SlowBody

RATE = web.RequestKey("rate", Verdict)
BODY_MEMORY = web.AppKey("body_memory", BodyMemory)
BODY = web.RequestKey("body", BodyLease)


def release_body(request: web.Request) -> None:
    """Give back the memory of a request's body, if it has one."""
    if (lease := request.get(BODY)) is not None:
        lease.release()


def limited(limiter: RateLimiter, waits: Waits, *, body_timeout_s: float) -> Middleware:
    """Apply the limits to every request: its rate, the number of waiting requests, the time for its body."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        operation = declared(request.match_info.handler)
        if limiter and (operation is None or not operation.open):
            request[RATE] = verdict = limiter.take(request[CLIENT])
            if not verdict.allowed:
                raise too_many(limiter, verdict)
        with contextlib.ExitStack() as held:
            if operation is not None and operation.waits:
                resource = request.match_info.route.resource
                held.enter_context(waits.hold(resource.canonical if resource else request.path))
            held.callback(release_body, request)
            if request.can_read_body:
                held.enter_context(_body_deadline(request, body_timeout_s))
            return await handler(request)

    return middleware


@contextlib.contextmanager
def _body_deadline(request: web.Request, timeout_s: float) -> Iterator[None]:
    """Make reading the body fail with SlowBody if it does not arrive in time."""

    def expire() -> None:
        if not request.content.is_eof():
            request.content.set_exception(SlowBody(f"the body did not arrive within {timeout_s:g} s (body_timeout_s)"))

    timer = asyncio.get_running_loop().call_later(timeout_s, expire)
    try:
        yield
    finally:
        timer.cancel()


def rate_headers(limiter: RateLimiter, verdict: Verdict | None) -> dict[str, str]:
    """The RateLimit headers of the IETF draft."""
    if verdict is None:
        return {}
    return {
        "RateLimit-Policy": limiter.policy,
        "RateLimit": f'"requests";r={verdict.remaining};t={verdict.full_in_s}',
    }
