"""Deliveries that this worker cannot handle: left for another worker, and after many of those ended as failed.

A job in the queue takes a place there until it is acknowledged, so one that nobody can handle must not stay. It may be
unreadable because a newer version wrote it, which another worker can read: so it is offered often before it is ended.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time

from nats.aio.msg import Msg
from pydantic import ValidationError

from bridge import logs
from bridge.broker.connection import BROKER_ERRORS
from bridge.broker.jobs import JobQueue, StoredState
from bridge.contract import (
    JOB_ID_PATTERN,
    BridgeError,
    ErrorBody,
    Job,
    JobKind,
    JobState,
    JobStatus,
    UnknownJob,
    UnreadableRecord,
)

log = logging.getLogger(__name__)

MAX_DELIVERIES = 20
"""A job that was delivered this often without a start has failed."""
AGAIN_AFTER_S = 0.25
"""When a delivery that is left is repeated."""


async def leave(msg: Msg, error: Exception) -> None:
    """Give a delivery back, for another worker or another try."""
    if isinstance(error, ValidationError):
        log.error("a job that this version cannot read is left to others: %s", logs.what_failed(error))
    elif isinstance(error, (BridgeError, *BROKER_ERRORS)):
        log.warning("a job is left to be delivered again: %s", error or type(error).__name__)
    else:
        log.exception("a job is left to be delivered again", exc_info=error)
    with contextlib.suppress(*BROKER_ERRORS):
        await msg.nak(delay=AGAIN_AFTER_S)


async def give_up(queue: JobQueue, msg: Msg, error: Exception) -> None:
    """End a job that nobody could handle as failed, with the cause, and remove it from the queue."""
    cause = logs.what_failed(error) if isinstance(error, ValidationError) else f"{error or type(error).__name__}"
    log.error("a job that no worker could handle in %d deliveries is removed: %s", MAX_DELIVERIES, cause)
    try:
        await _write_failure(queue, msg.data, cause)
        await msg.term()
    except (BridgeError, *BROKER_ERRORS) as failure:
        log.warning("the failed job stays in the queue for now: %s", failure or type(failure).__name__)


async def _write_failure(queue: JobQueue, data: bytes, cause: str) -> None:
    """Write the failed state of a job, if as much as its id can be read. Raises Unavailable."""
    job = _readable_part(data)
    if job is None:
        return
    try:
        stored = await queue.begin(job)
    except UnreadableRecord as unreadable:
        stored = StoredState(JobState.queued(job), unreadable.revision)
    while not stored.state.status.final:
        body = ErrorBody(code="unreadable_record", message=f"no worker could handle the job: {cause}")
        failed = stored.state.moved(JobStatus.FAILED, finished_at=time.time(), error=body)
        if (written := await queue.advance(StoredState(failed, stored.revision))) is not None:
            await queue.announce(written.state)
            stored = written
            break
        stored = await queue.stored_state(job.job_id)
    with contextlib.suppress(UnknownJob):
        await queue.call_back(stored.state)


def _readable_part(data: bytes) -> Job | None:
    """What can be read of a job; None without an id."""
    try:
        raw = json.loads(data)
        job_id = raw["job_id"]
        if not re.fullmatch(JOB_ID_PATTERN, job_id):
            return None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    known = {name: raw[name] for name in Job.model_fields if name in raw}
    try:
        return Job.model_validate(known, extra="ignore")
    except ValidationError:
        mode = raw.get("mode")
        return Job(
            job_id=job_id,
            kind=JobKind.GENERATE,
            mode=mode if isinstance(mode, str) else "unknown",
            parameters={},
            submitted_at=time.time(),
        )
