"""What one reader of a job's events has not read yet: bounded, however slow the reader is.

Newer news of the same thing takes the place of older: a reader that falls behind misses steps, never an end, and
nobody else waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from bridge.contract import JobEvent

MAX_PHASES = 64
"""Phases of one job whose last progress is kept; a graph of more nodes loses the oldest."""


class Mailbox:
    """Events of one job on their way to one reader. For one event loop; `put` never waits.

    `ends_only`: for a reader that waits for the end, and has no use for what comes before.
    """

    def __init__(self, *, previews: bool = True, ends_only: bool = False) -> None:
        self.ends_only = ends_only
        self._events: dict[Hashable, JobEvent] = {}
        self._filled = asyncio.Event()
        self._previews = previews
        self._ended = False

    def put(self, event: JobEvent) -> None:
        """Take an event; what it makes stale is dropped. Nothing is taken after the final one."""
        if self._ended or (event.type == "preview" and not self._previews):
            return
        self._ended = event.final
        key = (event.type, event.phase)
        self._events.pop(key, None)
        if event.final:  # What the reader has not seen by now, the final state makes stale.
            self._events.pop(("preview", None), None)
        elif len(self._events) >= MAX_PHASES:
            del self._events[next(iter(self._events))]
        self._events[key] = event
        self._filled.set()

    async def get(self) -> JobEvent:
        """The oldest event that is still news."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        return self._events.pop(next(iter(self._events)))

    def __len__(self) -> int:
        return len(self._events)
