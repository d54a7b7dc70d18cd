"""The worker: takes jobs from the queue and gives each to an `Execution` on its one ComfyUI.

A delivery is acknowledged only after the job's final state is at the broker. `bridge.worker.job.held` has the states.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout

from bridge import logs, tracing
from bridge.broker.connection import BROKER_ERRORS, OUR_ERRORS, connect, respond
from bridge.broker.control import PauseSwitch
from bridge.broker.fleet import BUSY, STATUS_INTERVAL_S, TAKEN, Roster, handed_over, offer_subject, unload_subject
from bridge.broker.jobs import HEARTBEAT_S, WATCH_S, JobQueue
from bridge.broker.questions import answer
from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIError
from bridge.contract import BridgeError, ErrorBody, Job, JobStatus, Unavailable, read_answer
from bridge.disk import Disks
from bridge.modes.library import SHIPPED_WORKFLOWS, ModeLibrary
from bridge.settings import Settings
from bridge.stopping import stop
from bridge.worker.input_cleaning import InputCleaner
from bridge.worker.job import inputs
from bridge.worker.job.execution import Execution, Outcome, Workplace
from bridge.worker.job.held import HeldJob, State
from bridge.worker.job.record import JobRecord
from bridge.worker.offers import options_for
from bridge.worker.patience import insist
from bridge.worker.plans import plan_of
from bridge.worker.report import WorkerReport
from bridge.worker.unhandled import MAX_DELIVERIES, give_up, leave
from bridge.worker.unloading import Unloading

log = logging.getLogger(__name__)

MAX_SLOTS = 8
"""Most jobs in ComfyUI at once: while one runs, the next ones wait there, so that the device is never idle."""
AHEAD_S = 0.3
"""How many seconds of work may wait in ComfyUI. A job that runs for longer is alone there: its turnover cost is
negligible, and the next job is better off in the queue, where any worker can take it."""
RELEASE_AFTER_S = 2.0
"""A job that has waited in ComfyUI this long goes back to the queue when another worker is idle."""
MAX_HELD = MAX_SLOTS + 8
"""Most jobs on this worker, with those whose images are on their way to the store."""
FETCH_WAIT_S = 5.0
RETRY_S = 1.0
DISK_CHECK_S = 5.0
"""How often a worker whose disk is nearly full checks whether it has space again."""


class Worker:
    """One worker and its ComfyUI."""

    def __init__(
        self,
        queue: JobQueue,
        comfy: ComfyUI,
        modes: ModeLibrary,
        worker_id: str,
        *,
        idle_unload_s: float = 0.0,
        stall_s: float = 0.0,
        disks: Disks = Disks(),  # noqa: B008 - frozen
    ) -> None:
        self._disks = disks
        self.worker_id = worker_id
        self._queue = queue
        self._comfy = comfy
        self._roster = Roster(queue.nc, queue.names)
        self._report = WorkerReport(queue, comfy, worker_id)
        self._held: dict[str, HeldJob] = {}
        self._switch: PauseSwitch
        """Opened by `run`."""
        self._unloading = Unloading(
            comfy,
            self._report,
            worker_id,
            running=lambda: [job_id for job_id, held in self._held.items() if held.state.occupies_comfyui],
            told=lambda: self._changed.set(),
            idle_s=idle_unload_s,
        )
        self._cleaner = InputCleaner(comfy, queue.retention, self._uploads)
        self._place = Workplace(queue, comfy, modes, self._cleaner, self._is_watched, stall_s)
        self._watched: dict[str, float] = {}  # until when (monotonic) somebody looks at the previews of a job
        self._changed = asyncio.Event()
        self._run_seconds = AHEAD_S  # a recent average, in ComfyUI
        self._shorter = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled. Jobs that are held then are delivered to the next worker."""
        nc, names = self._queue.nc, self._queue.names
        self._switch = await PauseSwitch.open(nc, names)
        self._switch.on_pause = lambda: self._changed.set()
        await nc.subscribe(names.model_info, queue="workers", cb=self._report.answer_model_info)
        await nc.subscribe(names.plan, queue="workers", cb=self._on_plan)
        await nc.subscribe(names.options, queue="workers", cb=self._on_options)
        await nc.subscribe(f"{names.cancel}.*", cb=self._on_cancel)
        await nc.subscribe(f"{names.watch}.*", cb=self._on_watch)
        await nc.subscribe(offer_subject(names, self.worker_id), cb=self._on_offer)
        await nc.subscribe(unload_subject(names, self.worker_id), cb=self._on_unload)
        await nc.subscribe(names.workers, cb=self._on_roll_call)
        await self._roster.open()
        serving = [asyncio.create_task(self._serve(number)) for number in range(MAX_SLOTS)]
        serving += [asyncio.create_task(self._beat()), asyncio.create_task(self._cleaner.run())]
        serving += [asyncio.create_task(self._switch.follow()), asyncio.create_task(self._unloading.run())]
        try:
            await asyncio.gather(*serving)
        finally:
            await stop(serving)
            await stop(self._tasks)

    # -- jobs --------------------------------------------------------------------------------------------------------

    async def _serve(self, number: int) -> None:
        """Serve one slot. Slots beyond the first take jobs only while jobs are short."""
        subscription = None
        while True:
            try:
                while number * self._run_seconds > AHEAD_S:
                    self._shorter.clear()
                    await self._shorter.wait()
                if subscription is None:
                    subscription = await self._queue.subscribe(self._switch.paused)
                await self._switch.wait_running()
                await self._report.wait_usable()
                if problem := self._disks.shortage():
                    self._has_problem(f"no job is taken: {problem}")
                    await asyncio.sleep(DISK_CHECK_S)
                    continue
                self._has_problem(None)
                [msg] = await subscription.fetch(1, timeout=FETCH_WAIT_S)
            except NatsTimeout:
                continue
            except (BridgeError, *BROKER_ERRORS) as error:
                self._has_problem(f"the queue cannot be reached: {error or type(error).__name__}")
                subscription = None
                await asyncio.sleep(RETRY_S)
                continue
            await self._switch.hold(msg)
            await self._take(msg)

    def _has_problem(self, problem: str | None) -> None:
        """Report why this worker gets no jobs, or that it does again."""
        if problem is not None:
            log.warning("%s", problem)
        if problem != self._report.problem:
            self._report.problem = problem
            self._changed.set()

    async def _take(self, msg: Msg) -> None:
        """Start a job, and return when ComfyUI is done with it and this worker can hold another."""
        free = asyncio.Event()
        task = self._spawn(self._handle(msg, free))
        freed = asyncio.create_task(free.wait())
        await asyncio.wait({task, freed}, return_when=asyncio.FIRST_COMPLETED)
        freed.cancel()
        if len(self._held) >= MAX_HELD:
            await asyncio.wait({task})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _handle(self, msg: Msg, free: asyncio.Event, *, handed: bool = False) -> None:
        """Handle one delivery. On an error it is left alone, and delivered again, up to MAX_DELIVERIES times."""
        deliveries = msg.metadata.num_delivered
        try:
            job = read_answer(Job, msg.data)
            logs.bind(job_id=job.job_id)  # This task is about nothing else.
            if (trace := tracing.Trace.read(job.traceparent, job.tracestate)) is not None:
                logs.bind(trace_id=trace.trace_id)
            logs.keep_private(job.parameters)
            if deliveries > 1:
                self._report.redeliveries += 1
                log.info("job delivered again", extra=logs.fields(deliveries=deliveries))
            alive = self._spawn(self._keep_alive(msg, job.job_id))
            try:
                if not handed and await self._hand_over(msg, job):
                    return
                await self._switch.hold(msg)
                with _traced(job) as span:
                    await self._see_through(msg, job, free, span)
            finally:
                alive.cancel()
        except Exception as error:
            # The barrier of a delivery: one that cannot be handled must neither stop this worker nor stay for ever.
            away = isinstance(error, (Unavailable, *BROKER_ERRORS)) and not isinstance(error, OUR_ERRORS)
            if away or deliveries <= MAX_DELIVERIES:
                await leave(msg, error)
            else:
                await give_up(self._queue, msg, error)

    async def _hand_over(self, msg: Msg, job: Job) -> bool:
        """Give a job to a worker that has its model loaded, if this one has not and there is one."""
        if job.model is None or job.model in self._report.loaded or msg.metadata.num_delivered > 1:
            return False
        return await self._roster.hand_over(msg, job.model, own_id=self.worker_id)

    async def _keep_alive(self, msg: Msg, job_id: str) -> None:
        """Report to the broker, every few seconds, that this worker has the job."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            held = self._held.get(job_id)
            with contextlib.suppress(*BROKER_ERRORS):
                await (held.delivery if held else msg).in_progress()

    async def _see_through(self, msg: Msg, job: Job, free: asyncio.Event, span: tracing.Span) -> None:
        """Take a job to its end, then acknowledge it or give it back."""
        record = await JobRecord.open(self._queue, job, self.worker_id)
        if record.state.status.final:
            await insist(lambda: self._queue.end_callback(job))
            await msg.ack()
            return
        if (known := self._held.get(job.job_id)) is not None:
            known.delivered_again(msg)
            return
        held = HeldJob(
            job,
            msg,
            redelivered=msg.metadata.num_delivered > 1 or record.state.status is JobStatus.RUNNING,
            cancelled=record.state.cancel_requested,
            changed=lambda held: self._on_change(held, free),
        )
        self._held[job.job_id] = held
        self._changed.set()
        try:
            execution = Execution(self._place, held, record)
            if msg.metadata.num_delivered > MAX_DELIVERIES:
                cause = f"the job was given to workers {MAX_DELIVERIES} times and none finished it"
                await execution.end(Outcome.failed(ErrorBody(code="worker_died", message=cause)))
            else:
                await execution.run()
            if held.state is State.ENDED:
                await insist(lambda: self._queue.end_callback(job))
        finally:
            del self._held[job.job_id]
            self._changed.set()
            state = record.state
            span.set(status=state.status.value, attempts=state.attempts, queue_ms=state.queue_time_ms)
            if state.error is not None and state.status is JobStatus.FAILED:
                span.fail(state.error.code)
        if held.state is State.ENDED:
            await held.delivery.ack()
        elif held.state is State.RELEASED:
            with contextlib.suppress(*BROKER_ERRORS):
                await held.delivery.nak()

    def _on_change(self, held: HeldJob, free: asyncio.Event) -> None:
        """A job moved on. `free`: its slot may take the next one."""
        if held.state is State.COLLECTING:
            run_seconds = held.start.elapsed_s if held.start else 0.0
            self._run_seconds = 0.8 * self._run_seconds + 0.2 * run_seconds
            self._shorter.set()
            if held.job.model is not None:
                self._report.loaded.add(held.job.model)
        if not held.state.occupies_comfyui:
            free.set()

    # -- what others ask ---------------------------------------------------------------------------------------------

    async def _on_cancel(self, msg: Msg) -> None:
        held = self._held.get(msg.subject.rpartition(".")[2])
        if held is None:
            return
        held.ask_to_cancel()
        with contextlib.suppress(ComfyUIError):  # A ComfyUI that is away has lost the run, and it is not sent again.
            await self._comfy.cancel(held.job.job_id)
        await respond(self._queue.nc, msg)

    async def _on_watch(self, msg: Msg) -> None:
        now = time.monotonic()
        self._watched = {job_id: until for job_id, until in self._watched.items() if until > now}
        self._watched[msg.subject.rpartition(".")[2]] = now + 2 * WATCH_S

    def _is_watched(self, job_id: str) -> bool:
        return self._watched.get(job_id, 0.0) > time.monotonic()

    async def _on_offer(self, msg: Msg) -> None:
        """Another worker offers a job whose model is loaded here."""
        ahead = sum(held.state.occupies_comfyui for held in self._held.values())
        open_ = self._report.usable and self._switch.pause is None
        free = open_ and ahead < MAX_SLOTS and (not ahead or ahead * self._run_seconds <= AHEAD_S)
        if free:
            self._spawn(self._handle(handed_over(self._queue.nc, msg), asyncio.Event(), handed=True))
        await respond(self._queue.nc, msg, TAKEN if free else BUSY)

    def _uploads(self) -> list[str]:
        bucket = self._queue.names.inputs
        return [name for held in self._held.values() for name in inputs.upload_names(held.job.parameters, bucket)]

    async def _on_roll_call(self, _: Msg) -> None:
        """A gateway has just started: report this worker to it, and the progress of its jobs."""
        await self._report.publish(self._held)
        with contextlib.suppress(*BROKER_ERRORS):
            for event in [held.progress for held in self._held.values() if held.progress is not None]:
                await self._queue.publish(event)

    async def _beat(self) -> None:
        """Publish the heartbeat, now and then and at every change."""
        read_at = None
        while True:
            if read_at is None or time.monotonic() - read_at >= STATUS_INTERVAL_S:
                await self._report.refresh()
                read_at = time.monotonic()
            await self._report.publish(self._held)
            await self._release()
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), RELEASE_AFTER_S if self._held else STATUS_INTERVAL_S)
                await asyncio.sleep(0.2)  # Changes come in bursts.

    async def _release(self) -> None:
        """Give back the jobs that ComfyUI has not started: during a pause, all; while another worker is idle, those
        behind a long one."""
        for held in list(self._held.values()):
            late = held.held_s > RELEASE_AFTER_S and self._roster.idle(but=self.worker_id)
            if (late or self._switch.pause is not None) and held.ask_to_release():
                with contextlib.suppress(ComfyUIError):
                    await self._comfy.cancel(held.job.job_id)

    async def _on_unload(self, msg: Msg) -> None:
        async def reply() -> None:  # It takes seconds, and a callback blocks its subscription.
            with contextlib.suppress(*BROKER_ERRORS):
                await answer(self._queue.nc, msg, self._unloading.asked(msg.data), "unload")

        self._spawn(reply())

    async def _on_plan(self, msg: Msg) -> None:
        if msg.reply:
            await answer(self._queue.nc, msg, plan_of(self._comfy, msg.data), "planning")

    async def _on_options(self, msg: Msg) -> None:
        if msg.reply:
            await answer(self._queue.nc, msg, options_for(self._comfy, msg.data), "options")


def _traced(job: Job) -> AbstractContextManager[tracing.Span]:
    """The span of a job on this worker."""
    return tracing.span(
        f"job {job.kind.value}",
        "consumer",
        tracing.Trace.read(job.traceparent, job.tracestate),
        job_id=job.job_id,
        mode=job.mode,
        model=job.model,
        priority=job.priority,
    )


def default_worker_id(comfyui_url: str) -> str:
    """A name for the worker of this ComfyUI: host and port, and the process where ComfyUI is shared."""
    parts = urlsplit(comfyui_url)
    host = parts.hostname or ""
    if host in ("127.0.0.1", "localhost", "::1"):
        host = socket.gethostname()
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"{host}-{parts.port or 80}-{os.getpid()}")[:64]


async def run_worker(settings: Settings, nats_url: str, comfyui_url: str) -> None:
    """Work until cancelled. Raises Unavailable without NATS."""
    nc = await connect(nats_url, "imagegen-worker", access=settings.nats_access)
    try:
        queue = await JobQueue.open(
            nc, max_pending=settings.max_pending, names=settings.names, retention=settings.retention
        )
        worker_id = settings.worker_id or default_worker_id(comfyui_url)
        async with ComfyUI(comfyui_url, output_dir=settings.comfyui_output_dir) as comfy:
            modes = ModeLibrary([SHIPPED_WORKFLOWS, settings.workflows])
            await Worker(
                queue,
                comfy,
                modes,
                worker_id,
                idle_unload_s=settings.idle_unload_s,
                stall_s=settings.stall_s,
                disks=settings.disks,
            ).run()
    finally:
        await nc.close()
