"""Cancelling a job wherever it is: in the queue, with a worker, or between two workers."""

from __future__ import annotations

import asyncio
import contextlib
import time

from bridge.broker.connection import BROKER_ERRORS
from bridge.broker.jobs import JobQueue, StoredState
from bridge.contract import CancelAnswer, CancelOutcome, ErrorBody, JobState, JobStatus

CANCEL_WAIT_S = 20.0
"""How long a cancellation waits for the worker: longer than ACK_WAIT_S, so that another worker has a dead one's job."""
CANCEL_REPEAT_S = 2.0


async def cancel(queue: JobQueue, job_id: str) -> CancelAnswer:
    """Cancel a job that waits or runs, and report the outcome. A job that has ended stays as it is.

    The request is stored with the job, so that a worker that takes over after a crash finds it. Raises UnknownJob and
    Unavailable.
    """
    answer = await _cancel(queue, job_id, running_too=True)
    assert answer is not None
    return answer


async def dequeue(queue: JobQueue, job_id: str) -> CancelAnswer | None:
    """Cancel a job if it waits. None: it runs, and is left alone. Raises UnknownJob and Unavailable."""
    return await _cancel(queue, job_id, running_too=False)


async def _cancel(queue: JobQueue, job_id: str, *, running_too: bool) -> CancelAnswer | None:
    with queue.listen(job_id, ends_only=True) as events:
        while True:
            stored = await queue.stored_state(job_id)
            state = stored.state
            if state.status.final:
                return _answer(state, CancelOutcome.ALREADY_ENDED)
            if not running_too and state.status is JobStatus.RUNNING:
                return None
            if state.cancel_requested:
                break
            if state.status is JobStatus.RUNNING:
                changed = state.model_copy(update={"cancel_requested": True})
                if await queue.advance(StoredState(changed, stored.revision)):
                    break
                continue
            body = ErrorBody(code="cancelled", message="the job was cancelled while it waited")
            cancelled = state.moved(JobStatus.CANCELLED, finished_at=time.time(), error=body)
            if written := await queue.advance(StoredState(cancelled, stored.revision)):
                if queue.noted:
                    queue.noted(cancelled, written.revision)
                # A worker may have it in its ComfyUI's own queue already.
                await queue.nc.publish(f"{queue.names.cancel}.{job_id}")
                await queue.announce(cancelled)
                await queue.call_back(cancelled)
                return _answer(cancelled, CancelOutcome.DEQUEUED)
        asking = asyncio.create_task(_ask_to_cancel(queue, job_id))
        try:
            async with asyncio.timeout(CANCEL_WAIT_S):
                async for event in queue.follow(job_id, events):
                    if event.final and event.state:
                        stopped = event.state.status is JobStatus.CANCELLED
                        return _answer(
                            event.state, CancelOutcome.INTERRUPTED if stopped else CancelOutcome.ALREADY_ENDED
                        )
        except TimeoutError:
            pass
        finally:
            asking.cancel()
    return _answer(await queue.state(job_id), CancelOutcome.RECORDED)


async def _ask_to_cancel(queue: JobQueue, job_id: str) -> None:
    """Keep asking the worker that has the job: it may be moving from one to another."""
    while True:
        with contextlib.suppress(*BROKER_ERRORS):
            await queue.nc.publish(f"{queue.names.cancel}.{job_id}")
        await asyncio.sleep(CANCEL_REPEAT_S)


OUTCOMES = {
    CancelOutcome.DEQUEUED: "the job was waiting; it will not run",
    CancelOutcome.INTERRUPTED: "the job was running and has been stopped",
    CancelOutcome.ALREADY_ENDED: "the job was {status} before it could be cancelled; nothing has changed",
    CancelOutcome.RECORDED: "the job is {status} and its worker has not answered yet; it will be cancelled as soon as "
    "a worker has it",
}


def _answer(state: JobState, outcome: CancelOutcome) -> CancelAnswer:
    message = OUTCOMES[outcome].format(status=state.status.value)
    return CancelAnswer.model_validate({**dict(state), "outcome": outcome, "message": message})
