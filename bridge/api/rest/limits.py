"""What may be asked of the doors: so many requests a minute, so many that wait, bodies that arrive in time and fit."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from aiohttp import web

from bridge.api.rest.auth import CLIENT
from bridge.api.rest.operations import Handler, Middleware, declared
from bridge.contract.errors import SlowBody, TooManyBodies, TooManyRequests, TooManyWaits
from bridge.settings import OPEN_RATE_PER_MINUTE, Settings, is_loopback

MAX_CLIENTS = 10_000
"""Clients whose rate is remembered; the one that was quiet longest is forgotten first."""


class Verdict(NamedTuple):
    """What a bucket says to a request. `full_in_s`: when the whole burst is there again."""

    allowed: bool
    remaining: int
    retry_after_s: int
    full_in_s: int


RATE = web.RequestKey("rate", Verdict)


@dataclass
class _Bucket:
    level: float
    at: float


class RateLimiter:
    """A token bucket for each client: `burst` requests at once, refilled with `per_minute`. 0 a minute is no limit."""

    def __init__(self, per_minute: int, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self.burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    @classmethod
    def of(cls, settings: Settings) -> RateLimiter:
        """The limiter that the settings ask for. Without a word of them loopback has no limit."""
        rate = settings.rate_per_minute
        if rate is None:
            rate = 0 if is_loopback(settings.host) else OPEN_RATE_PER_MINUTE
        return cls(rate, settings.rate_burst)

    def __bool__(self) -> bool:
        return self.per_minute > 0

    @property
    def policy(self) -> str:
        """The RateLimit-Policy header (draft-ietf-httpapi-ratelimit-headers): quota and window in seconds."""
        return f'"requests";q={self.burst};w={math.ceil(self.burst * 60 / self.per_minute)}'

    def take(self, client: str) -> Verdict:
        """Count one request of `client`."""
        now, per_second = self._clock(), self.per_minute / 60
        bucket = self._buckets.setdefault(client, _Bucket(self.burst, now))
        self._buckets.move_to_end(client)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        bucket.level = min(self.burst, bucket.level + (now - bucket.at) * per_second)
        bucket.at = now
        allowed = bucket.level >= 1
        if allowed:
            bucket.level -= 1
        wait = 0 if bucket.level >= 1 else math.ceil((1 - bucket.level) / per_second)
        return Verdict(allowed, int(bucket.level), wait, math.ceil((self.burst - bucket.level) / per_second))


class Waits:
    """Requests that hold their connection until something happens, over all doors of one gateway."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: dict[str, int] = {}
        """How many, by what they wait for (a route, or the NATS door)."""

    @contextlib.contextmanager
    def hold(self, kind: str) -> Iterator[None]:
        """Be one of them. Raises TooManyWaits."""
        if sum(self.open.values()) >= self.limit:
            raise TooManyWaits(
                f"{self.limit} requests and event streams (max_waits) are open already; use POST /v1/jobs, which does "
                "not wait, or try again"
            )
        self.open[kind] = self.open.get(kind, 0) + 1
        try:
            yield
        finally:
            self.open[kind] -= 1


class BodyRoom:
    """Memory for bodies that are read and checked, over all requests of one gateway. One alone is always let in."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def lease(self, announced: int | None) -> BodyLease:
        """Room for one body, of which the request has `announced` the length. Raises TooManyBodies."""
        lease = BodyLease(self)
        lease.reserve(announced or 0)
        return lease


class BodyLease:
    """What one body takes of the room, until `release`."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._reserved = 0
        self._read = 0

    def reserve(self, size: int) -> None:
        """Have room for `size` bytes in all. Raises TooManyBodies."""
        more, others = size - self._reserved, self._room.used - self._reserved
        if more > 0 and others and others + size > self._room.limit:
            raise TooManyBodies(
                f"the bodies of other requests take {others} of {self._room.limit} bytes (max_bodies_bytes); try again"
            )
        self._room.used += max(0, more)
        self._reserved = max(self._reserved, size)

    def count(self, size: int) -> None:
        """So many bytes more have been read. Raises TooManyBodies where they had not been announced."""
        self._read += size
        self.reserve(self._read)

    def release(self) -> None:
        """The body is not in memory any more."""
        self._room.used -= self._reserved
        self._reserved = self._read = 0


BODY_ROOM = web.AppKey("body_room", BodyRoom)
BODY = web.RequestKey("body", BodyLease)


def release_body(request: web.Request) -> None:
    """Give back what the body of a request took; nothing where it had none."""
    if (lease := request.get(BODY)) is not None:
        lease.release()


def too_many(limiter: RateLimiter, verdict: Verdict) -> TooManyRequests:
    """The error of a request that came too early."""
    wait = verdict.retry_after_s
    message = f"more than {limiter.per_minute} requests a minute (rate_per_minute); try again in {wait} s"
    return TooManyRequests(message, retry_after_s=wait)


def limited(limiter: RateLimiter, waits: Waits, *, body_timeout_s: float) -> Middleware:
    """Hold every request to the limits: its rate, the number of those that wait, the time of its body."""

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
    """Make reading the body fail with SlowBody when it is not all there in time."""

    def expire() -> None:
        if not request.content.is_eof():
            request.content.set_exception(SlowBody(f"the body did not arrive within {timeout_s:g} s (body_timeout_s)"))

    timer = asyncio.get_running_loop().call_later(timeout_s, expire)
    try:
        yield
    finally:
        timer.cancel()


def rate_headers(limiter: RateLimiter, verdict: Verdict | None) -> dict[str, str]:
    """What a client may know of its rate: the RateLimit headers of the IETF's draft."""
    if verdict is None:
        return {}
    return {
        "RateLimit-Policy": limiter.policy,
        "RateLimit": f'"requests";r={verdict.remaining};t={verdict.full_in_s}',
    }
