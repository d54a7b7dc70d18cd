"""Frees the memory of a worker's ComfyUI: when somebody asks for it, and after a time without jobs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from pydantic import ValidationError

from bridge import logs
from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIError
from bridge.comfyui.pack import model_info, unload_model
from bridge.contract import BridgeError, ModelInfoResponse, UnloadOutcome, UnloadRequest, WorkerUnload
from bridge.worker.report import WorkerReport

log = logging.getLogger(__name__)

FREE_WAIT_S = 5.0
"""How long ComfyUI, which frees memory between two prompts, may take before its answer is `deferred`."""
POLL_S = 0.1
IDLE_POLL_S = 1.0
DEFERRED = "a job is running on this worker; its ComfyUI frees the memory when that job ends"
BUSY = "a job is running on this worker, and the model was left in memory; try again when the job has ended"


class Unloading:
    """The unloading of one worker. `running` returns the jobs that occupy its ComfyUI; `told` publishes a heartbeat."""

    def __init__(
        self,
        comfy: ComfyUI,
        report: WorkerReport,
        worker_id: str,
        *,
        running: Callable[[], Iterable[str]],
        told: Callable[[], None],
        idle_s: float = 0.0,
    ) -> None:
        self._comfy = comfy
        self._report = report
        self._worker_id = worker_id
        self._running = running
        self._told = told
        self._idle_s = idle_s
        self._lock = asyncio.Lock()

    async def asked(self, question: bytes) -> WorkerUnload:
        """What a gateway asks for. Raises BridgeError for a question that cannot be read."""
        try:
            asked = UnloadRequest.model_validate_json(question)
        except ValidationError as error:
            raise BridgeError(f"the request to unload cannot be read: {logs.what_failed(error)}") from error
        return await self.unload(asked.model_name)

    async def unload(self, model: str | None = None) -> WorkerUnload:
        """Take one model, or all, out of memory."""
        async with self._lock:
            try:
                before = await model_info(self._comfy)
                wanted = [known.name for known in before.models if known.loaded and model in (None, known.name)]
                # Without a model, whatever else ComfyUI holds goes too: ControlNets, the results that it has cached.
                if model is None:
                    await self._comfy.free(unload_models=True, free_memory=True)
                    after = await self._gone(wanted)
                elif wanted:
                    busy = await unload_model(self._comfy, model)
                    if busy:
                        return WorkerUnload(worker_id=self._worker_id, outcome=UnloadOutcome.BUSY, message=BUSY)
                    after = await model_info(self._comfy)
                else:
                    after = before
            except (BridgeError, ComfyUIError) as error:
                return WorkerUnload(worker_id=self._worker_id, outcome=UnloadOutcome.UNREACHABLE, message=str(error))
            finally:
                await self._report.refresh()
                self._told()
        return self._compared(wanted, before, after)

    async def _gone(self, models: list[str]) -> ModelInfoResponse:
        """What ComfyUI reports once these models are unloaded, or after a while."""
        deadline = time.monotonic() + FREE_WAIT_S
        while True:
            info = await model_info(self._comfy)
            if not any(known.loaded for known in info.models if known.name in models):
                return info
            if time.monotonic() > deadline:
                return info
            await asyncio.sleep(POLL_S)

    def _compared(self, wanted: list[str], before: ModelInfoResponse, after: ModelInfoResponse) -> WorkerUnload:
        loaded = {known.name for known in after.models if known.loaded}
        gone = [name for name in wanted if name not in loaded]
        outcome, message = UnloadOutcome.UNLOADED, ""
        if len(gone) < len(wanted):
            outcome, message = UnloadOutcome.DEFERRED, DEFERRED
        elif not wanted:
            outcome = UnloadOutcome.NOT_LOADED
        freed = max(0, sum(device_bytes(before, name) for name in gone))
        if gone:
            log.info("unloaded %s", ", ".join(gone), extra=logs.fields(freed_bytes=freed))
        return WorkerUnload(
            worker_id=self._worker_id,
            outcome=outcome,
            models=gone,
            freed_bytes=freed,
            vram_free_bytes=after.vram_free_bytes,
            message=message,
        )

    async def run(self) -> None:
        """Unload everything after `idle_s` seconds without a job, until cancelled."""
        if not self._idle_s:
            return
        busy_at, freed = time.monotonic(), False
        while True:
            await asyncio.sleep(min(IDLE_POLL_S, self._idle_s / 4))
            if await self._busy():
                busy_at, freed = time.monotonic(), False
            elif not freed and time.monotonic() - busy_at >= self._idle_s and self._report.loaded:
                answer = await self.unload()
                freed = answer.outcome in (UnloadOutcome.UNLOADED, UnloadOutcome.NOT_LOADED)
            elif freed and self._report.loaded:  # Somebody loaded a model in the editor.
                busy_at, freed = time.monotonic(), False

    async def _busy(self) -> bool:
        """Whether ComfyUI has work: the worker's, or that of a person at the editor."""
        if any(self._running()):
            return True
        if not self._comfy.connected:
            return False
        try:
            queue = await self._comfy.queue_snapshot(not_before=asyncio.get_running_loop().time())
        except ComfyUIError:
            return False
        return bool(queue.running or queue.pending)


def device_bytes(info: ModelInfoResponse, model: str) -> int:
    """Bytes of a model's weights that are on the device."""
    known = info.find(model)
    return sum(part.device_bytes for part in (known.memory or ())) if known else 0
