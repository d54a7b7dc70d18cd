"""What a worker reports about itself and its ComfyUI: whether jobs can run there, its loaded models, its heartbeat."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable

from nats.aio.msg import Msg

from bridge.broker.connection import BROKER_ERRORS
from bridge.broker.jobs import JobQueue
from bridge.broker.questions import answer
from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIError
from bridge.comfyui.pack import model_info, require_nodes
from bridge.contract import BridgeError, ModelInfoResponse, Unavailable, WorkerStatus
from bridge.worker.patience import comfyui_ready

log = logging.getLogger(__name__)

RECHECK_S = 2.0
"""How often to check whether a ComfyUI without the pack's nodes has been restarted with them."""


class WorkerReport:
    """The state of one worker's ComfyUI, as last seen."""

    def __init__(self, queue: JobQueue, comfy: ComfyUI, worker_id: str) -> None:
        self.loaded: set[str] = set()
        """Models that ComfyUI has in memory."""
        self.redeliveries = 0
        self.problem: str | None = None
        """Why this worker gets no jobs from the queue."""
        self._queue = queue
        self._comfy = comfy
        self._worker_id = worker_id
        self._info: ModelInfoResponse | None = None
        self._started_at = time.time()
        self._checked: int | None = None
        """The number of the websocket connection on which ComfyUI had the pack's nodes. ComfyUI loads nodes only at its
        start, so one check per connection is enough."""

    @property
    def usable(self) -> bool:
        """Whether a job could run now."""
        return self._comfy.connected and self._checked == self._comfy.reconnects

    async def wait_usable(self) -> None:
        """Wait for a ComfyUI that answers and has the pack's nodes: on any other, a job would fail needlessly."""
        logged = False
        while True:
            await comfyui_ready(self._comfy)
            if self._checked == (connection := self._comfy.reconnects):
                return
            try:
                await require_nodes(self._comfy)
                self._checked = connection
                return
            except Unavailable as error:
                if not logged:
                    log.error("no jobs are taken: %s", error.message)
                    logged = True
            except ComfyUIError as error:
                log.debug("ComfyUI went away while its nodes were checked: %s", error)
            await asyncio.sleep(RECHECK_S)

    async def refresh(self) -> None:
        """Ask ComfyUI for its models."""
        connection = self._comfy.reconnects
        try:
            self._info = await model_info(self._comfy)
            self._checked = connection
            self.loaded = {model.name for model in self._info.models if model.loaded}
        except BridgeError:
            self.loaded = set()

    async def publish(self, running: Iterable[str]) -> None:
        """Publish the heartbeat: the state of this worker and the jobs that it holds."""
        info = self._info
        status = WorkerStatus(
            worker_id=self._worker_id,
            comfyui_up=self.usable,
            device=info.device if info else None,
            vram_total_bytes=info.vram_total_bytes if info else None,
            vram_free_bytes=info.vram_free_bytes if info else None,
            reconnects=self._queue.nc.stats["reconnects"] + self._comfy.reconnects,
            redeliveries=self.redeliveries,
            running=list(running),
            loaded_models=sorted(self.loaded),
            started_at=self._started_at,
            problem=self.problem,
        )
        with contextlib.suppress(*BROKER_ERRORS):
            await self._queue.nc.publish(
                f"{self._queue.names.workers}.{self._worker_id}", status.model_dump_json().encode()
            )

    async def answer_model_info(self, msg: Msg) -> None:
        """Reply with the models that ComfyUI reports now."""
        if msg.reply:
            await answer(self._queue.nc, msg, model_info(self._comfy), "model_info")
