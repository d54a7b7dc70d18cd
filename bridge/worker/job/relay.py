"""Publishes what ComfyUI reports of one run, in the terms of the job: phases, bytes, steps, seconds left, previews.

These events are hints: one that cannot be published, because the broker is away, must not fail a job that runs.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bridge.broker.connection import BROKER_ERRORS
from bridge.comfyui.errors import ComfyUIError
from bridge.comfyui.messages import Download, Event, Loading, NodeStarted, Preview, Progress, Started
from bridge.contract import JobEvent, Unavailable
from bridge.modes.graphs import Graph

PREVIEW_INTERVAL_S = 0.25
PROGRESS_INTERVAL_S = 0.1
"""Least time between two progress events of one phase. The last event of a count is always published."""
SAMPLERS = ("NeuroLuxSample", "NeuroLuxGenerate", "KSampler", "SamplerCustom")
"""Prefixes of the class names of nodes that count denoising steps."""

Publish = Callable[[JobEvent], Awaitable[None]]


@dataclass
class Count:
    """The first value of a count and its time (monotonic clock), from which its speed is measured."""

    first_value: float
    first_at: float
    published_at: float = 0.0

    def rate(self, value: float, now: float) -> float | None:
        """Units a second; None until two values are known."""
        done, took = value - self.first_value, now - self.first_at
        return done / took if done > 0 and took > 0 else None


class Relay:
    """Use as `async with Relay(…) as relay`, and give every event to `take`. On leaving, all have been published.

    `watched` returns whether anybody looks at previews.
    """

    def __init__(
        self,
        job_id: str,
        graph: Graph,
        publish: Publish,
        *,
        watched: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job_id = job_id
        self._graph = graph
        self._publish = publish
        self._watched = watched
        self._clock = clock
        self._pending: asyncio.Queue[JobEvent | None] = asyncio.Queue()
        self._counts: dict[tuple[str, str, float | None], Count] = {}
        self._bytes: dict[str, float] = {}
        """By node: the size of what it loads. Its own bar, which counts the same bytes, is no phase of its own."""
        self._node = ""
        self._preview_at: float | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._publish_all())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pending.put_nowait(None)
        await self._task

    def take(self, event: Event) -> None:
        """Take one event of the run; never waits."""
        match event:
            case Started():
                self._pending.put_nowait(JobEvent(type="started", job_id=self._job_id))
            case NodeStarted(node):
                self._node = node
            case Progress(node, value, maximum):
                node = node or self._node
                if maximum == self._bytes.get(node):
                    return
                phase = "sample" if self._class_of(node).startswith(SAMPLERS) else self._title(node)
                self._count(phase, node, value, maximum, key=phase)
            case Loading(node, _, value, maximum):
                self._count("load", node, value, maximum, key="load", in_bytes=True)
            case Download(node, _, file, done, total, rate):
                self._count("download", node, done, total, key=file, in_bytes=True, rate=rate)
            case Preview():
                self._preview(event)

    def _count(
        self,
        phase: str,
        node: str,
        value: float,
        maximum: float | None,
        *,
        key: str,
        in_bytes: bool = False,
        rate: float | None = None,
    ) -> None:
        now = self._clock()
        last = maximum is not None and value >= maximum
        if in_bytes and maximum is not None:
            self._bytes[node] = maximum
        count = self._counts.get((node, key, maximum))
        if count is None or value < count.first_value:
            count = self._counts[(node, key, maximum)] = Count(value, now)
        elif now - count.published_at < PROGRESS_INTERVAL_S and not last:
            return
        count.published_at = now
        rate = rate or count.rate(value, now)
        left = (maximum - value) / rate if maximum is not None and rate else None
        event = JobEvent(
            type="progress",
            job_id=self._job_id,
            phase=phase,
            node=self._title(node) or None,
            value=value,
            maximum=maximum,
            seconds_left=0.0 if last else left if left is None else round(left, 3),
            done_bytes=int(value) if in_bytes else None,
            total_bytes=int(maximum) if in_bytes and maximum is not None else None,
            bytes_per_second=round(rate, 1) if in_bytes and rate else None,
        )
        self._pending.put_nowait(event)

    def _preview(self, event: Preview) -> None:
        now = self._clock()
        if not self._watched() or (self._preview_at is not None and now - self._preview_at < PREVIEW_INTERVAL_S):
            return
        self._preview_at = now
        encoded = base64.b64encode(event.image).decode()
        preview = JobEvent(type="preview", job_id=self._job_id, image_b64=encoded, mime=event.mime)
        self._pending.put_nowait(preview)

    async def _publish_all(self) -> None:
        while (event := await self._pending.get()) is not None:
            with contextlib.suppress(Unavailable, ComfyUIError, *BROKER_ERRORS):
                await self._publish(event)

    def _class_of(self, node: str) -> str:
        return self._graph.get(node, {}).get("class_type", "")

    def _title(self, node: str) -> str:
        return self._graph.get(node, {}).get("_meta", {}).get("title") or self._class_of(node)
