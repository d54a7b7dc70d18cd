"""Has the node pack remove uploads from its ComfyUI's input folder when they are as old as their jobs may be.

An image is named by its content, so a new job may need one that was uploaded long ago: what the worker's jobs need is
kept, and none is uploaded while the folder is cleaned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from bridge import logs
from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIError
from bridge.settings import Retention

log = logging.getLogger(__name__)

CLEAN_ROUTE = "/neurolux/inputs/clean"
INTERVAL_S = 600.0


class InputCleaner:
    """For one worker. `needed` gives the names of the uploads that its jobs need."""

    def __init__(self, comfy: ComfyUI, retention: Retention, needed: Callable[[], Iterable[str]]) -> None:
        self._comfy = comfy
        self._retention = retention
        self._needed = needed
        self._rests = asyncio.Event()
        self._rests.set()

    async def run(self, interval_s: float = INTERVAL_S) -> None:
        """Clean now and then, until cancelled."""
        while True:
            if self._comfy.connected:
                await self.clean()
            await asyncio.sleep(interval_s)

    async def clean(self) -> None:
        """Clean once. A node pack that is too old to know how is left in peace."""
        self._rests.clear()
        try:
            bounds = {"older_than_s": self._retention.jobs_s, "most_bytes": self._retention.images_bytes}
            answer = await self._comfy.post_json(CLEAN_ROUTE, {**bounds, "keep": sorted(set(self._needed()))})
            if removed := answer.get("removed"):
                log.info("uploads that no job needs are removed from ComfyUI", extra=logs.fields(count=len(removed)))
        except ComfyUIError as error:
            log.debug("ComfyUI's input folder was not cleaned: %s", error)
        finally:
            self._rests.set()

    async def resting(self) -> None:
        """Wait until nothing is being removed. A job that is among the needed before it asks keeps its uploads."""
        await self._rests.wait()
