"""The unread events of one reader, bounded however slow the reader is.

A newer event of the same kind replaces the older one: a slow reader misses steps, never the end, and delays nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from bridge.contract import JobEvent

MAX_PHASES = 64
"""The phases of one job whose last progress is kept; a graph with more nodes loses the oldest."""


class Mailbox:
    """Events of one job on their way to one reader. For one event loop; `put` never waits.

    `ends_only`: the reader wants only the final event.
    """

    def __init__(self, *, previews: bool = True, ends_only: bool = False) -> None:
        self.ends_only = ends_only
        self._events: dict[Hashable, JobEvent] = {}
        self._filled = asyncio.Event()
        self._previews = previews
        self._ended = False

    def put(self, event: JobEvent) -> None:
        """Add an event and drop what it makes stale. Nothing is added after the final event."""
        if self._ended or (event.type == "preview" and not self._previews):
            return
        self._ended = event.final
        key = (event.type, event.phase)
        self._events.pop(key, None)
        if event.final:  # The final state makes unseen previews stale.
            self._events.pop(("preview", None), None)
        elif len(self._events) >= MAX_PHASES:
            del self._events[next(iter(self._events))]
        self._events[key] = event
        self._filled.set()

    async def get(self) -> JobEvent:
        """Wait for the oldest unread event, and take it."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        return self._events.pop(next(iter(self._events)))

    def __len__(self) -> int:
        return len(self._events)
