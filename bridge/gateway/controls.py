"""What concerns the whole installation, whichever API asks for it: the pause, cancelling all jobs, freeing memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from bridge.broker.control import PauseSwitch
from bridge.broker.fleet import Roster, unload_subject
from bridge.broker.jobs import JobQueue
from bridge.broker.questions import ask_worker
from bridge.contract import (
    MAX_REASON_CHARS,
    PRIORITIES,
    BridgeError,
    CancelAnswer,
    InvalidRequest,
    JobStatus,
    Pause,
    QueueCancelAnswer,
    QueuePaused,
    QueueState,
    Unavailable,
    UnknownJob,
    UnknownModel,
    UnknownWorker,
    UnloadAnswer,
    UnloadOutcome,
    UnloadRequest,
    WorkerUnload,
)
from bridge.gateway import cancellation
from bridge.gateway.index import JobIndex
from bridge.gateway.models import Models

INDEX_WAIT_S = 10.0
CANCEL_AT_ONCE = 16
UNLOAD_TIMEOUT_S = 15.0
"""Longer than a worker waits for its ComfyUI."""


class Controls:
    """The controls of one installation, at one gateway."""

    def __init__(self, queue: JobQueue, index: JobIndex, roster: Roster, models: Models, switch: PauseSwitch) -> None:
        self._queue = queue
        self._index = index
        self._roster = roster
        self._models = models
        self._switch = switch

    # -- the queue ---------------------------------------------------------------------------------------------------

    @property
    def pause(self) -> Pause | None:
        """The pause, if the queue is paused, as this gateway last heard."""
        return self._switch.pause

    def refuse_paused(self) -> None:
        """Raise QueuePaused if no job would be run now."""
        if (pause := self.pause) is not None:
            reason = f" ({pause.reason})" if pause.reason else ""
            raise QueuePaused(
                f"the queue was paused by {pause.by}{reason}: jobs are accepted and wait; POST /v1/queue/resume ends "
                "the pause"
            )

    async def state(self) -> QueueState:
        """The state of the queue. Raises Unavailable."""
        return self._state(await self._switch.read())

    async def set_pause(self, by: str, reason: str | None = None) -> QueueState:
        """Pause the queue, or leave it paused. Raises InvalidRequest and Unavailable."""
        if reason is not None and len(reason) > MAX_REASON_CHARS:
            raise InvalidRequest(f"reason has {len(reason)} characters; at most {MAX_REASON_CHARS}", field="reason")
        return self._state(await self._switch.set(by, reason or None))

    async def resume(self) -> QueueState:
        """Resume the queue, or leave it running. Raises Unavailable."""
        await self._switch.clear()
        return self._state(None)

    def _state(self, pause: Pause | None) -> QueueState:
        waiting = Counter(entry.priority for entry in self._index.waiting())
        return QueueState(
            paused=pause is not None,
            **(pause.model_dump() if pause else {}),
            waiting=waiting.total(),
            waiting_by_priority={priority: waiting[priority] for priority in PRIORITIES},
            running=len(self._index.running()),
        )

    async def cancel_all(self, *, running: bool = False) -> QueueCancelAnswer:
        """Cancel every job that waits, those submitted last first; with `running`, also those that run.

        Raises Unavailable.
        """
        if not await self._index.complete(INDEX_WAIT_S):
            raise Unavailable("the list of jobs is still loading; try again")
        work = cancellation.cancel if running else cancellation.dequeue
        # In this order no worker takes up a job that is about to be cancelled.
        jobs = [entry.job_id for entry in reversed(self._index.waiting())]
        jobs += [entry.job_id for entry in self._index.running()] if running else []
        limit = asyncio.Semaphore(CANCEL_AT_ONCE)

        async def one(job_id: str) -> str | None:
            async with limit:
                return await _outcome(work, self._queue, job_id)

        outcomes = Counter(await asyncio.gather(*(one(job_id) for job_id in jobs)))
        outcomes.pop(None, None)
        return QueueCancelAnswer.model_validate(outcomes)

    # -- memory ------------------------------------------------------------------------------------------------------

    async def unload(self, model: str | None = None, worker_id: str | None = None) -> UnloadAnswer:
        """Free device memory: of one model or all, on one worker or all.

        Raises UnknownModel, UnknownWorker and Unavailable.
        """
        if model is not None:
            known = await self._models.recent()
            if known.find(model) is None:
                names = ", ".join(each.name for each in known.models) or "none"
                raise UnknownModel(f"no model is called {model!r}; available: {names}", field="model_name")
        workers = [worker.worker_id for worker in (await self._roster.list()).workers]
        if worker_id is not None:
            if worker_id not in workers:
                names = ", ".join(workers) or "none"
                raise UnknownWorker(f"no worker is called {worker_id!r}; heard of lately: {names}", field="worker_id")
            workers = [worker_id]
        if not workers:
            raise Unavailable("no worker is running yet; try again in a moment")
        question = UnloadRequest(model_name=model).model_dump_json().encode()
        return UnloadAnswer(
            model=model, workers=list(await asyncio.gather(*(self._unload_on(name, question) for name in workers)))
        )

    async def _unload_on(self, worker_id: str, question: bytes) -> WorkerUnload:
        subject = unload_subject(self._queue.names, worker_id)
        try:
            return await ask_worker(self._queue.nc, subject, question, WorkerUnload, timeout_s=UNLOAD_TIMEOUT_S)
        except BridgeError as error:
            return WorkerUnload(worker_id=worker_id, outcome=UnloadOutcome.UNREACHABLE, message=error.message)


async def _outcome(
    work: Callable[[JobQueue, str], Awaitable[CancelAnswer | None]], queue: JobQueue, job_id: str
) -> str | None:
    try:
        answer = await work(queue, job_id)
    except UnknownJob:  # The retention has removed it.
        return None
    if answer is None:
        return "still_running"
    if answer.outcome == "already_ended" and answer.status is JobStatus.CANCELLED:
        return None  # Somebody else cancelled it.
    return answer.outcome.value
