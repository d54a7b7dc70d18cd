"""The workers of one installation, as gateways and other workers see them: heartbeats, and jobs handed over.

Handing a job over pays off when another worker has its model in memory: loading a model takes longer than most jobs.
A worker offers the job to that worker, which takes over the delivery and its acknowledgement, or declines. Offers last
a second or two at most: the worker runs a job itself if nobody takes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import ValidationError

from bridge.broker.connection import BROKER_ERRORS
from bridge.contract import WorkerEntry, WorkerList, WorkerStatus, read_answer
from bridge.names import Names

log = logging.getLogger(__name__)

STATUS_INTERVAL_S = 5.0
STALE_S = 15.0
"""A worker that has been silent for this long gets no offers."""
FORGET_S = 60.0
ROLL_CALL_S = 0.3
"""How long a process that has just started waits for answers to its roll call."""
HOLD_BACK_S = 2.0
"""How long a job waits for a busy worker that has its model."""
OFFER_TIMEOUT_S = 0.5
OFFER_INTERVAL_S = 0.2
DELIVERY_HEADER = "Imagegen-Delivery"
TAKEN, BUSY = b"taken", b"busy"


class Roster:
    """The workers that this process has heard from."""

    def __init__(self, nc: Client, names: Names, clock: Callable[[], float] = time.monotonic) -> None:
        self._nc = nc
        self._names = names
        self._clock = clock
        self._heard: dict[str, tuple[float, WorkerStatus]] = {}
        self._called_at: float | None = None

    async def open(self) -> None:
        """Listen to heartbeats, and ask every worker for one."""
        await self._nc.subscribe(f"{self._names.workers}.*", cb=self._on_status)
        await self._nc.publish(self._names.workers)
        self._called_at = self._clock()

    async def list(self) -> WorkerList:
        """Every worker that sent a heartbeat in the last minute, by name."""
        if self._called_at is not None and (early := self._called_at + ROLL_CALL_S - self._clock()) > 0:
            await asyncio.sleep(early)
        now = self._clock()
        self._heard = {name: heard for name, heard in self._heard.items() if now - heard[0] < FORGET_S}
        return WorkerList(
            workers=[
                WorkerEntry(**status.model_dump(), age_seconds=round(now - heard_at, 1))
                for _, (heard_at, status) in sorted(self._heard.items())
            ]
        )

    def problem(self) -> str | None:
        """Why no worker gets jobs from the queue; None if one does, or if no worker has been heard of."""
        now = self._clock()
        alive = [status for heard_at, status in self._heard.values() if now - heard_at < STALE_S]
        if alive and all(status.problem for status in alive):
            return f"worker {alive[0].worker_id}: {alive[0].problem}"
        return None

    def holders(self, model: str, *, but: str) -> list[str]:
        """Workers that have the model loaded, the least busy first."""
        now = self._clock()
        fit = [
            status
            for heard_at, status in self._heard.values()
            if now - heard_at < STALE_S
            and status.comfyui_up
            and model in status.loaded_models
            and status.worker_id != but
        ]
        return [status.worker_id for status in sorted(fit, key=lambda status: len(status.running))]

    def idle(self, *, but: str) -> bool:
        """Whether another worker has nothing to do."""
        now = self._clock()
        return any(
            now - heard_at < STALE_S and status.comfyui_up and not status.running and status.worker_id != but
            for heard_at, status in self._heard.values()
        )

    async def _on_status(self, msg: Msg) -> None:
        with contextlib.suppress(ValidationError):  # of another version
            status = read_answer(WorkerStatus, msg.data)
            self._heard[status.worker_id] = (self._clock(), status)

    # -- jobs handed over --------------------------------------------------------------------------------------------

    async def hand_over(self, msg: Msg, model: str, *, own_id: str) -> bool:
        """Offer a delivery to the workers that have its model. True: one took it, and will acknowledge it."""
        deadline = self._clock() + HOLD_BACK_S
        while holders := self.holders(model, but=own_id):
            for worker_id in holders:
                if await self._offer(msg, worker_id):
                    return True
            if self._clock() >= deadline:
                return False
            await asyncio.sleep(OFFER_INTERVAL_S)
        return False

    async def _offer(self, msg: Msg, worker_id: str) -> bool:
        subject = offer_subject(self._names, worker_id)
        try:
            answer = await self._nc.request(
                subject, msg.data, timeout=OFFER_TIMEOUT_S, headers={DELIVERY_HEADER: msg.reply}
            )
        except BROKER_ERRORS:
            # It died, or its answer is late. If it took the job after all, two run it, and the first end counts.
            self._heard.pop(worker_id, None)
            return False
        return answer.data == TAKEN


# -- the subjects of one worker ----------------------------------------------------------------------------------------


def offer_subject(names: Names, worker_id: str) -> str:
    """The subject on which a worker receives offers."""
    return f"{names.workers}.{worker_id}.take"


def unload_subject(names: Names, worker_id: str) -> str:
    """The subject on which a worker is asked to free its memory."""
    return f"{names.workers}.{worker_id}.unload"


def handed_over(nc: Client, offer: Msg) -> Msg:
    """The delivery inside an offer. Acknowledging it acknowledges the job."""
    return Msg(_client=nc, subject=offer.subject, reply=(offer.headers or {})[DELIVERY_HEADER], data=offer.data)
