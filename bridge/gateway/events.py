"""The events of one job for one reader: the current state first, then every event up to the end.

A reader that comes late, or comes back, misses nothing that still matters. The final event comes even if the broker
loses it, because the bucket is polled too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from bridge.broker.jobs import STATE_POLL_S, JobQueue
from bridge.broker.mailbox import Mailbox
from bridge.contract import JobEvent, JobState, JobStatus, Unavailable, UnknownJob
from bridge.gateway.index import JobIndex, Place
from bridge.gateway.s3 import Exports

UNKNOWN_JOB_WAIT_S = 60.0
"""A client may ask for events of a job before it submits the job. After this long the gateway stops waiting for it."""
PLACE_INTERVAL_S = 1.0
"""The shortest time between two events about the place of a job in the queue."""
WAIT_NEWS_S = 2.0
"""An estimate that differs by less from the expected one is not sent."""


async def tell(
    queue: JobQueue,
    index: JobIndex,
    job_id: str,
    *,
    previews: bool,
    unknown_wait_s: float = UNKNOWN_JOB_WAIT_S,
    exports: Exports | None = None,
) -> AsyncIterator[JobEvent]:
    """Every event of a job. Ends with the job. If no job has that id, it says so at once, and gives the job
    `unknown_wait_s` to be submitted."""
    async for event in _tell(queue, index, job_id, previews=previews, unknown_wait_s=unknown_wait_s):
        if exports is not None and event.final and event.state is not None:
            yield event.model_copy(update={"state": await exports.ended(event.state)})
        else:
            yield event


async def _tell(
    queue: JobQueue, index: JobIndex, job_id: str, *, previews: bool, unknown_wait_s: float
) -> AsyncIterator[JobEvent]:
    with queue.listen(job_id, previews=previews) as mailbox:
        try:
            state = await queue.state(job_id)
        except Unavailable:
            state = None
        except UnknownJob:
            state = None
            yield JobEvent(type="unknown", job_id=job_id)
        if state is not None:
            if state.status.final:
                yield JobEvent.ending(state)
                return
            seen = index.view(state)
            yield JobEvent(
                type="state", job_id=job_id, state=seen, position=seen.position, wait_seconds=seen.wait_seconds
            )
            if state.status is JobStatus.RUNNING and (last := queue.last_progress_event(job_id)):
                yield last
        give_up_at = None if state is not None else time.monotonic() + unknown_wait_s
        place, told_at = index.place(job_id), time.monotonic()
        waits = state is None or state.status is JobStatus.QUEUED
        while True:
            event = await _next(queue, mailbox, job_id, PLACE_INTERVAL_S if waits else STATE_POLL_S)
            if event is not None:
                waits = waits and event.type in ("queued", "state")
                give_up_at = None
                yield event
                if event.final:
                    return
                continue
            now = time.monotonic()
            if give_up_at is not None and index.get(job_id) is not None:
                give_up_at = None
            if give_up_at is not None and now > give_up_at:
                return
            new = index.place(job_id) if waits else None
            if new is not None and _is_news(place, new, now - told_at):
                place, told_at = new, now
                yield JobEvent(type="queued", job_id=job_id, position=new.position, wait_seconds=new.wait_seconds)


async def _known(queue: JobQueue, job_id: str) -> JobState | None:
    try:
        return await queue.state(job_id)
    except (UnknownJob, Unavailable):
        return None


async def _next(queue: JobQueue, mailbox: Mailbox, job_id: str, patience_s: float) -> JobEvent | None:
    """The next event; None if there is none for a while and the job has not ended."""
    try:
        return await asyncio.wait_for(mailbox.get(), patience_s)
    except TimeoutError:
        state = await _known(queue, job_id)
        return JobEvent.ending(state) if state is not None and state.status.final else None


def _is_news(old: Place | None, new: Place, elapsed_s: float) -> bool:
    """Whether a place differs from the one that the reader expects, who counts down the seconds itself."""
    if old is None or old.position != new.position or (old.wait_seconds is None) != (new.wait_seconds is None):
        return True
    if old.wait_seconds is None or new.wait_seconds is None:
        return False
    return abs(max(0.0, old.wait_seconds - elapsed_s) - new.wait_seconds) > WAIT_NEWS_S
