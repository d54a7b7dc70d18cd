"""Notices a ComfyUI that answers and does nothing with its job, as when the GPU hangs.

A run that is silent for long is interrupted. ComfyUI heeds that between two steps and between two nodes; one that does
not heed it either, or not a cancellation, never will.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIError
from bridge.comfyui.pack import restart

log = logging.getLogger(__name__)

LOOK_S = 1.0
STOP_S = 300.0
"""How long an interrupted run may take to stop: a step of a large model takes minutes on a CPU."""


class Stall:
    """Watches the run of one job. `cancelled` tells whether its caller cancelled it. A limit of 0 is none."""

    def __init__(self, comfy: ComfyUI, job_id: str, limit_s: float, *, cancelled: Callable[[], bool]) -> None:
        self.found = False
        """Whether the run was silent for too long, and was interrupted for that."""
        self._comfy = comfy
        self._job_id = job_id
        self._limit_s = limit_s
        self._cancelled = cancelled
        self._heard_at: float | None = None

    def heard(self) -> None:
        """ComfyUI has started the job, or goes on with it."""
        self._heard_at = time.monotonic()

    async def watch(self) -> None:
        """Return when ComfyUI is stuck with the job; until then, interrupt the job when it is silent for too long."""
        stopping_since: float | None = None
        while True:
            await asyncio.sleep(LOOK_S)
            if self._heard_at is None or not self._limit_s:
                continue
            now = time.monotonic()
            if stopping_since is None:
                if not self._cancelled():
                    if now - self._heard_at < self._limit_s:
                        continue
                    self.found = True
                    log.error(
                        "job %s: ComfyUI has shown no progress for %g s; stopping it", self._job_id, self._limit_s
                    )
                    await self._ask(self._comfy.cancel(self._job_id))
                stopping_since = now
            elif now - max(stopping_since, self._heard_at) >= min(STOP_S, self._limit_s):
                return

    async def end_comfyui(self) -> None:
        """Have the stuck ComfyUI end, so that whoever keeps it starts another."""
        log.error("job %s: ComfyUI does not stop it; it has to be started again", self._job_id)
        await self._ask(restart(self._comfy, self._job_id))

    async def _ask(self, work: Awaitable[object]) -> None:
        try:
            await work
        except ComfyUIError as error:
            log.error("job %s: %s", self._job_id, error)
