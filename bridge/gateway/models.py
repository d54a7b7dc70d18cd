"""The models that this gateway's requests are checked against, as a worker reports them."""

from __future__ import annotations

import asyncio
import time

from bridge.broker.jobs import JobQueue
from bridge.broker.questions import ask_worker
from bridge.contract import BridgeError, ModelInfoResponse

TIMEOUT_S = 10.0
STALE_S = 10.0
"""An answer older than this is not used. A younger one is, while a newer one is requested."""
FRESH_S = 2.0
"""Requests within this time share one answer; the loaded models in it may be this old."""


class Models:
    """The models of the workers. `ask` always asks; `recent` serves bursts of requests from one answer."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._known: tuple[float, ModelInfoResponse] | None = None
        self._asking: asyncio.Future[ModelInfoResponse] | None = None

    async def ask(self) -> ModelInfoResponse:
        """The models, as a worker reads them from its ComfyUI now. Raises Unavailable and WorkerError."""
        try:
            info = await ask_worker(
                self._queue.nc, self._queue.names.model_info, b"", ModelInfoResponse, timeout_s=TIMEOUT_S
            )
        except BridgeError:
            self._known = None  # If nobody answers now, the last answer is not to be trusted.
            raise
        self._known = (time.monotonic(), info)
        return info

    async def recent(self) -> ModelInfoResponse:
        """The models as of a few seconds ago. Raises Unavailable and WorkerError."""
        known = self._known
        age_s = time.monotonic() - known[0] if known else STALE_S
        if known and age_s < FRESH_S:
            return known[1]
        # Everyone who asks at once shares one question, and nobody waits who has an answer of a few seconds ago.
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self.ask())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        if known and age_s < STALE_S:
            return known[1]
        return await asyncio.shield(self._asking)
