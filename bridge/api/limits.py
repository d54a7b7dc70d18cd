"""Limits that all APIs of one gateway share: requests a minute, requests that wait, and memory for bodies."""

from __future__ import annotations

import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bridge.contract import TooManyBodies, TooManyRequests, TooManyWaits
from bridge.settings import OPEN_RATE_PER_MINUTE, Settings, is_loopback

MAX_CLIENTS = 10_000
"""Clients whose rate is remembered; the one that was quiet longest is forgotten first."""


class Verdict(NamedTuple):
    """What a bucket says to a request. `full_in_s`: when the whole burst is there again."""

    allowed: bool
    remaining: int
    retry_after_s: int
    full_in_s: int


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


class BodyMemory:
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

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._reserved = 0
        self._read = 0

    def reserve(self, size: int) -> None:
        """Have room for `size` bytes in all. Raises TooManyBodies."""
        more, others = size - self._reserved, self._memory.used - self._reserved
        if more > 0 and others and others + size > self._memory.limit:
            raise TooManyBodies(
                f"the bodies of other requests take {others} of {self._memory.limit} bytes (max_bodies_bytes); "
                "try again"
            )
        self._memory.used += max(0, more)
        self._reserved = max(self._reserved, size)

    def count(self, size: int) -> None:
        """So many bytes more have been read. Raises TooManyBodies where they had not been announced."""
        self._read += size
        self.reserve(self._read)

    def release(self) -> None:
        """The body is not in memory any more."""
        self._memory.used -= self._reserved
        self._reserved = self._read = 0


def too_many(limiter: RateLimiter, verdict: Verdict) -> TooManyRequests:
    """The error of a request that came too early."""
    wait = verdict.retry_after_s
    message = f"more than {limiter.per_minute} requests a minute (rate_per_minute); try again in {wait} s"
    return TooManyRequests(message, retry_after_s=wait)
