"""An index of all jobs in memory, for lists, queue positions and estimates.

Each gateway has one. It follows the state bucket, so it knows the jobs of all gateways and workers, and keeps a short
record of each. The bucket is the truth: answers about one job come from there, not from here.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, Header
from pydantic import ValidationError

from bridge import logs
from bridge.broker.connection import BROKER_ERRORS
from bridge.broker.jobs import JobQueue
from bridge.contract import PRIORITIES, JobKind, JobState, JobStatus, Priority, read_answer
from bridge.gateway.run_times import JobKey, RunTimes, work_of

log = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
"""The interval of the broker's idle heartbeats."""
SILENCE_S = 6.0
"""A broker that is silent for this long has dropped the subscription."""
PRUNE_S = 60.0
SCHEDULE_S_PER_JOB = 5e-5
"""Positions are computed for all waiting jobs at once, and not again before this time for each of them has passed."""
NOBODY_WORKS_S = 10.0
"""If jobs wait for this long while none runs, no start time can be estimated."""


@dataclass(slots=True)
class Entry:
    """The part of a job that lists and estimates need. `revision` is that of its state in the bucket."""

    job_id: str
    key: JobKey
    kind: JobKind
    status: JobStatus
    submitted_at: float
    started_at: float | None
    finished_at: float | None
    work: float | None
    revision: int
    priority: Priority = "normal"


class Place(NamedTuple):
    """The place of a queued job: the number of jobs ahead, and seconds until it starts (None: not known)."""

    position: int
    wait_seconds: float | None


class JobIndex:
    """The jobs of one cluster. Run `run` once, as a background task."""

    def __init__(self, queue: JobQueue, *, clock: Callable[[], float] = time.time) -> None:
        self._queue = queue
        self.paused: Callable[[], bool] = lambda: False
        """Whether the queue is paused."""
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._order: list[tuple[float, str]] = []  # (submitted_at, job_id), oldest first
        self._waiting: dict[str, Entry] = {}
        self._running: dict[str, Entry] = {}
        self._times = RunTimes()
        self._revision = 0
        self._delivered = 0  # by the current consumer; a gap means that a message was lost
        self._heard_at = 0.0
        self._broken = False
        self._complete = asyncio.Event()
        self.unreadable = 0
        """The number of states that could not be read: another version wrote them, or they are damaged."""
        self._schedule: dict[str, Place] = {}
        self._scheduled_at = 0.0
        self._freed_at = 0.0

    # -- queries ------------------------------------------------------------------------------------------------

    async def complete(self, timeout_s: float) -> bool:
        """Wait until all jobs that existed at the start have been read. False if that takes longer than `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._complete.wait(), timeout_s)
        return self._complete.is_set()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, job_id: str) -> Entry | None:
        """The record of one job."""
        return self._entries.get(job_id)

    def waiting(self) -> list[Entry]:
        """The jobs that wait, those submitted last at the end."""
        return list(self._waiting.values())

    def running(self) -> list[Entry]:
        """The jobs that run."""
        return list(self._running.values())

    def newest_first(self, before: tuple[float, str] | None = None) -> Iterator[Entry]:
        """All jobs, last submitted first; with `before`, those submitted before (submitted_at, job_id)."""
        index = len(self._order) if before is None else bisect.bisect_left(self._order, before)
        for _, job_id in reversed(self._order[:index]):
            yield self._entries[job_id]

    def place(self, job_id: str) -> Place | None:
        """The place of a job in the queue; None if it is not waiting."""
        now = self._clock()
        if now - self._scheduled_at >= SCHEDULE_S_PER_JOB * len(self._waiting) or (job_id in self._waiting) != (
            job_id in self._schedule
        ):
            self._schedule = dict(self._places(now))
            self._scheduled_at = now
        return self._schedule.get(job_id)

    def view(self, state: JobState) -> JobState:
        """A state with its current position and wait, or its current progress."""
        if state.status is JobStatus.RUNNING:
            return state.model_copy(update={"progress": self._queue.last_progress(state.job_id)})
        if state.status is JobStatus.QUEUED and (place := self.place(state.job_id)):
            return state.model_copy(update={**place._asdict(), "paused": self.paused() or None})
        return state

    def _places(self, now: float) -> Iterator[tuple[str, Place]]:
        """Simulate the queue: waiting jobs run by priority and in order, on as many machines as run jobs now.

        That a few jobs of low priority are taken first, so that none starves, is left out.
        """
        waiting = sorted(self._waiting.values(), key=lambda entry: PRIORITIES.index(entry.priority))  # stable
        lanes = [self._left(entry, now) for entry in self._running.values()] or [0.0]
        first = next(iter(self._waiting.values()), None)
        if not self._running and first and now - max(first.submitted_at, self._freed_at) > NOBODY_WORKS_S:
            lanes = [None]
        free: list[float] | None = sorted(lane for lane in lanes if lane is not None)
        if None in lanes or self.paused():
            free = None
        for position, entry in enumerate(waiting):
            yield entry.job_id, Place(position, round(free[0], 3) if free else None)
            seconds = self._times.estimate(entry.key, entry.work)
            if free and seconds is not None:
                bisect.insort(free, free.pop(0) + seconds)
            else:
                free = None

    def _left(self, entry: Entry, now: float) -> float | None:
        seconds = self._times.estimate(entry.key, entry.work)
        return None if seconds is None else max(0.0, seconds - (now - (entry.started_at or now)))

    # -- following the bucket ------------------------------------------------------------------------------------

    def note(self, state: JobState, revision: int) -> None:
        """Record a state, unless a newer one is known."""
        known = self._entries.get(state.job_id)
        if known and known.revision >= revision:
            return
        entry = Entry(
            job_id=state.job_id,
            key=JobKey(state.mode, state.model),
            kind=state.kind,
            status=state.status,
            submitted_at=state.submitted_at,
            started_at=state.started_at,
            finished_at=state.finished_at,
            work=work_of(state.parameters),
            revision=revision,
            priority=state.priority,
        )
        self._entries[state.job_id] = entry
        if known is None:
            bisect.insort(self._order, (entry.submitted_at, entry.job_id))
        self._sort_in(entry)
        ended_now = entry.status is JobStatus.DONE and not (known and known.status.final)
        if ended_now and entry.started_at is not None and entry.finished_at is not None:
            self._times.add(entry.key, entry.work, max(0.0, entry.finished_at - entry.started_at))

    def _sort_in(self, entry: Entry) -> None:
        for jobs, status in ((self._waiting, JobStatus.QUEUED), (self._running, JobStatus.RUNNING)):
            if entry.status is status:
                jobs[entry.job_id] = entry
            elif jobs.pop(entry.job_id, None) and status is JobStatus.RUNNING:
                self._freed_at = self._clock()

    def forget(self, job_id: str) -> None:
        """Remove a job that the bucket no longer holds."""
        entry = self._entries.pop(job_id, None)
        if entry is not None:
            del self._order[bisect.bisect_left(self._order, (entry.submitted_at, job_id))]
            self._waiting.pop(job_id, None)
            self._running.pop(job_id, None)

    async def run(self) -> None:
        """Follow the bucket until cancelled. After an outage of the broker, continue where it left off."""
        while True:
            try:
                await self._follow()
            except BROKER_ERRORS as error:
                log.warning("the job index is waiting for the NATS server: %s", error or type(error).__name__)
                await asyncio.sleep(1.0)

    async def _follow(self) -> None:
        """Follow with one subscription, until it breaks."""
        nc, js = self._queue.nc, self._queue.nc.jetstream()
        if (await js.stream_info(self._queue.states_stream)).state.last_seq < self._revision:
            log.warning("the bucket of job states was made anew; reading it again")
            for job_id in list(self._entries):
                self.forget(job_id)
            self._revision = 0
        inbox = nc.new_inbox()
        self._delivered, self._broken, self._heard_at = 0, False, time.monotonic()
        subscription = await nc.subscribe(inbox, cb=self._on_message)
        try:
            config = ConsumerConfig(
                deliver_subject=inbox,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=self._revision + 1,
                ack_policy=AckPolicy.NONE,
                idle_heartbeat=HEARTBEAT_S,
                flow_control=True,
                mem_storage=True,
            )
            info = await js.add_consumer(self._queue.states_stream, config)
            if not info.num_pending:
                self._complete.set()
            reconnects, pruned_at = nc.stats["reconnects"], 0.0
            while not self._broken and nc.stats["reconnects"] == reconnects:
                if time.monotonic() - self._heard_at > SILENCE_S:
                    return
                if time.monotonic() - pruned_at > PRUNE_S:
                    await self._prune(js)
                    pruned_at = time.monotonic()
                await asyncio.sleep(0.25)
        finally:
            with contextlib.suppress(*BROKER_ERRORS):
                await subscription.unsubscribe()

    async def _on_message(self, msg: Msg) -> None:
        self._heard_at = time.monotonic()
        headers = msg.headers or {}
        if headers.get("Status") == "100":  # A heartbeat, or a flow control message, which needs an answer.
            # The heartbeat of a consumer that waits for an answer that was lost says where to send it.
            if stalled := msg.reply or headers.get(Header.CONSUMER_STALLED):
                await self._queue.nc.publish(stalled)
            elif not self._delivered:
                self._complete.set()
            return
        meta = msg.metadata
        if meta.sequence.consumer != self._delivered + 1:
            self._broken = True
            return
        self._delivered += 1
        self._revision = meta.sequence.stream
        if headers.get("KV-Operation"):  # A deletion has no value.
            self.forget(msg.subject.rpartition(".")[2])
        else:
            try:
                state = read_answer(JobState, msg.data)
                if state.status.final:
                    self._queue.ended(state)
                self.note(state, meta.sequence.stream)
            except ValidationError as error:  # Written by another version of this program.
                job_id = msg.subject.rpartition(".")[2]
                self.unreadable += 1
                log.warning("job %s has a state that cannot be read: %s", job_id, logs.what_failed(error))
        if not meta.num_pending:
            self._complete.set()

    async def _prune(self, js: Any) -> None:
        """Remove jobs that the retention has removed. The broker sends no message, but its oldest revision shows it."""
        first = (await js.stream_info(self._queue.states_stream)).state.first_seq
        for job_id in [entry.job_id for entry in self._entries.values() if entry.revision < first]:
            self.forget(job_id)
