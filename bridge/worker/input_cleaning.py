"""Has the node pack remove uploads from ComfyUI's input folder once they are older than jobs are kept.

An image is named by its content, so a new job may need one that was uploaded long ago. What the worker's jobs need is
kept, and nothing is uploaded while the folder is being cleaned.
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
    """Cleans for one worker. `needed` returns the names of the uploads that its jobs need."""

    def __init__(self, comfy: ComfyUI, retention: Retention, needed: Callable[[], Iterable[str]]) -> None:
        self._comfy = comfy
        self._retention = retention
        self._needed = needed
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self, interval_s: float = INTERVAL_S) -> None:
        """Clean every `interval_s` seconds, until cancelled."""
        while True:
            if self._comfy.connected:
                await self.clean()
            await asyncio.sleep(interval_s)

    async def clean(self) -> None:
        """Clean once. An older node pack, which has no such route, is ignored."""
        self._idle.clear()
        try:
            bounds = {"older_than_s": self._retention.jobs_s, "most_bytes": self._retention.images_bytes}
            answer = await self._comfy.post_json(CLEAN_ROUTE, {**bounds, "keep": sorted(set(self._needed()))})
            if removed := answer.get("removed"):
                log.info("removed uploads that no job needs from ComfyUI", extra=logs.fields(count=len(removed)))
        except ComfyUIError as error:
            log.debug("ComfyUI's input folder was not cleaned: %s", error)
        finally:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until no cleaning is in progress. Uploads that `needed` names by then are kept."""
        await self._idle.wait()
