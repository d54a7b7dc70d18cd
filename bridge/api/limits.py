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
"""The number of clients whose rate is remembered. The one that was quiet longest is forgotten first."""


class Verdict(NamedTuple):
    """Whether a request is allowed. `full_in_s`: seconds until the whole burst is available again."""

    allowed: bool
    remaining: int
    retry_after_s: int
    full_in_s: int


@dataclass
class _Bucket:
    level: float
    at: float


class RateLimiter:
    """A token bucket for each client: `burst` requests at once, refilled at `per_minute`. 0 a minute is no limit."""

    def __init__(self, per_minute: int, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self.burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    @classmethod
    def of(cls, settings: Settings) -> RateLimiter:
        """The limiter of the settings. By default there is no limit on loopback."""
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
    """Open requests that wait for something, over all APIs of one gateway."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: dict[str, int] = {}
        """Their number, by route (`NATS` for the NATS API)."""

    @contextlib.contextmanager
    def hold(self, kind: str) -> Iterator[None]:
        """Count as one of them. Raises TooManyWaits."""
        if sum(self.open.values()) >= self.limit:
            raise TooManyWaits(
                f"{self.limit} requests and event streams are open, which is the limit (max_waits); use POST "
                "/v1/jobs, which does not wait, or try again"
            )
        self.open[kind] = self.open.get(kind, 0) + 1
        try:
            yield
        finally:
            self.open[kind] -= 1


class BodyMemory:
    """Memory for request bodies, over all requests of one gateway. A single body always fits."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def lease(self, announced: int | None) -> BodyLease:
        """Memory for one body, of the length that the request `announced`. Raises TooManyBodies."""
        lease = BodyLease(self)
        lease.reserve(announced or 0)
        return lease


class BodyLease:
    """The memory of one body, until `release`."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._reserved = 0
        self._read = 0

    def reserve(self, size: int) -> None:
        """Reserve `size` bytes in total. Raises TooManyBodies."""
        more, others = size - self._reserved, self._memory.used - self._reserved
        if more > 0 and others and others + size > self._memory.limit:
            raise TooManyBodies(
                f"the bodies of other requests take {others} of {self._memory.limit} bytes (max_bodies_bytes); "
                "try again"
            )
        self._memory.used += max(0, more)
        self._reserved = max(self._reserved, size)

    def count(self, size: int) -> None:
        """Count `size` more bytes as read. Raises TooManyBodies if they exceed the announced length and do not fit."""
        self._read += size
        self.reserve(self._read)

    def release(self) -> None:
        """Give the memory back."""
        self._memory.used -= self._reserved
        self._reserved = self._read = 0


def too_many(limiter: RateLimiter, verdict: Verdict) -> TooManyRequests:
    """The error for a request over the rate."""
    wait = verdict.retry_after_s
    message = f"more than {limiter.per_minute} requests a minute (rate_per_minute); try again in {wait} s"
    return TooManyRequests(message, retry_after_s=wait)
