"""The worker: takes jobs from the queue, runs each on its one ComfyUI, reports, and only then acknowledges."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlsplit

from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout
from pydantic import ValidationError

from bridge import logs
from bridge.broker.connection import BROKER_ERRORS, connect
from bridge.broker.fleet import BUSY, STATUS_INTERVAL_S, TAKEN, Roster, handed_over, offer_subject
from bridge.broker.jobs import HEARTBEAT_S, WATCH_S, JobQueue, StoredState
from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIError, Interrupted
from bridge.contract import BridgeError, ErrorBody, Job, JobKind, JobState, JobStatus, Unavailable
from bridge.modes.graphs import load_graph
from bridge.modes.library import SHIPPED_WORKFLOWS, ModeLibrary
from bridge.settings import Settings
from bridge.stopping import stop
from bridge.worker import inputs
from bridge.worker.execution import Execution, Held, Released, insist
from bridge.worker.failures import describe
from bridge.worker.input_cleaning import InputCleaner
from bridge.worker.offers import answer_options
from bridge.worker.plans import answer_plan
from bridge.worker.report import WorkerReport

log = logging.getLogger(__name__)

MAX_SLOTS = 8
"""Jobs in ComfyUI at once, at most: while one runs, the next ones lie ready, so that the device is never idle."""
AHEAD_S = 0.3
"""How much work shall lie ready. A job that runs for longer is alone: the turnover is nothing to it, and the next one
is better off in the queue, where any worker can take it."""
RELEASE_AFTER_S = 2.0
"""A job that waits here for so long goes back to the queue when another worker has nothing to do."""
MAX_HELD = MAX_SLOTS + 8
"""With those that are drawn and whose images are on their way to the store."""
MAX_DELIVERIES = 20
"""A job that was handed out so often and never began is not worth another."""
FRESH_S = 0.25
"""A job that was submitted so short a time ago is begun while its state is still being read: hardly anybody can have
cancelled it, and whoever has gets it stopped."""
FETCH_WAIT_S = 5.0
RETRY_S = 1.0


class Worker:
    """One worker and its ComfyUI."""

    def __init__(self, queue: JobQueue, comfy: ComfyUI, modes: ModeLibrary, worker_id: str) -> None:
        self.worker_id = worker_id
        self._queue = queue
        self._comfy = comfy
        self._modes = modes
        self._roster = Roster(queue.nc, queue.names)
        self._report = WorkerReport(queue, comfy, worker_id)
        self._held: dict[str, Held] = {}
        self._cleaner = InputCleaner(comfy, queue.retention, self._uploads)
        self._watched: dict[str, float] = {}  # until when (monotonic) somebody looks at the previews of a job
        self._changed = asyncio.Event()
        self._run_seconds = AHEAD_S  # of late, in ComfyUI
        self._shorter = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled. Jobs that are held then are delivered to the next worker."""
        nc, names = self._queue.nc, self._queue.names
        await nc.subscribe(names.model_info, queue="workers", cb=self._report.answer_model_info)
        await nc.subscribe(names.plan, queue="workers", cb=self._on_plan)
        await nc.subscribe(names.options, queue="workers", cb=self._on_options)
        await nc.subscribe(f"{names.cancel}.*", cb=self._on_cancel)
        await nc.subscribe(f"{names.watch}.*", cb=self._on_watch)
        await nc.subscribe(offer_subject(names, self.worker_id), cb=self._on_offer)
        await nc.subscribe(names.workers, cb=self._on_roll_call)
        await self._roster.open()
        serving = [asyncio.create_task(self._serve(number)) for number in range(MAX_SLOTS)]
        serving += [asyncio.create_task(self._beat()), asyncio.create_task(self._cleaner.run())]
        try:
            await asyncio.gather(*serving)
        finally:
            await stop(serving)
            await stop(self._tasks)

    # -- jobs --------------------------------------------------------------------------------------------------------

    async def _serve(self, number: int) -> None:
        """One slot. Those beyond the first serve only while jobs are short."""
        subscription = None
        while True:
            try:
                while number * self._run_seconds > AHEAD_S:
                    self._shorter.clear()
                    await self._shorter.wait()
                if subscription is None:
                    subscription = await self._queue.subscribe()
                await self._report.wait_usable()
                [msg] = await subscription.fetch(1, timeout=FETCH_WAIT_S)
            except NatsTimeout:
                continue
            except (BridgeError, *BROKER_ERRORS) as error:
                log.warning("the queue is out of reach: %s", error or type(error).__name__)
                subscription = None
                await asyncio.sleep(RETRY_S)
                continue
            await self._take(msg)

    async def _take(self, msg: Msg) -> None:
        """Begin with a job; come back when ComfyUI is through with it and there is room for another."""
        drawn = asyncio.Event()
        task = self._spawn(self._handle(msg, drawn))
        through = asyncio.create_task(drawn.wait())
        await asyncio.wait({task, through}, return_when=asyncio.FIRST_COMPLETED)
        through.cancel()
        if len(self._held) >= MAX_HELD:
            await asyncio.wait({task})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _handle(self, msg: Msg, drawn: asyncio.Event, *, handed: bool = False) -> None:
        """One delivery, whatever becomes of it."""
        try:
            job = Job.model_validate_json(msg.data)
            logs.bind(job_id=job.job_id)  # This task is about nothing else.
            logs.keep_private(job.parameters)
            if msg.metadata.num_delivered > 1:
                self._report.redeliveries += 1
                log.info("job delivered again", extra=logs.fields(deliveries=msg.metadata.num_delivered))
            alive = self._spawn(self._keep(msg, job.job_id))
            try:
                if not handed and await self._hand_over(msg, job):
                    return
                delivery = await self._see_through(msg, job, drawn)
            finally:
                alive.cancel()
            if delivery is not None:
                await delivery.ack()
        except Released:
            with contextlib.suppress(*BROKER_ERRORS):
                await msg.nak()
        except ValidationError as error:
            log.error("a job that this version cannot read is left to others: %s", logs.what_failed(error))
            await asyncio.sleep(RETRY_S)
        except (BridgeError, *BROKER_ERRORS) as error:
            log.warning("a job is left to be delivered again: %s", error or type(error).__name__)
            await asyncio.sleep(RETRY_S)

    async def _hand_over(self, msg: Msg, job: Job) -> bool:
        """Give a job to a worker that holds its model, if we do not and there is one."""
        if job.model is None or job.model in self._report.loaded or msg.metadata.num_delivered > 1:
            return False
        return await self._roster.hand_over(msg, job.model, own_id=self.worker_id)

    async def _keep(self, msg: Msg, job_id: str) -> None:
        """Tell the broker that the job is in good hands."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            held = self._held.get(job_id)
            with contextlib.suppress(*BROKER_ERRORS):
                await (held.msg if held else msg).in_progress()

    async def _see_through(self, msg: Msg, job: Job, drawn: asyncio.Event) -> Msg | None:
        """Take a job to its end. Returns the delivery to acknowledge; None if the job is in our hands already."""
        first = msg.metadata.num_delivered == 1
        if first and job.job_id not in self._held and abs(time.time() - job.submitted_at) < FRESH_S:
            held = Held(job, msg, StoredState(JobState.queued(job), 0), redelivered=False, drawn=drawn)
            held.look = self._spawn(self._look(held))
        else:
            stored = await self._queue.begin(job)
            if stored.state.status.final:
                await insist(lambda: self._queue.end_callback(job))
                return msg
            if (known := self._held.get(job.job_id)) is not None:
                known.msg = msg  # The broker was away, and took our silence for death.
                return None
            held = Held(
                job, msg, stored, redelivered=not first or stored.state.status is JobStatus.RUNNING, drawn=drawn
            )
            held.cancelled = stored.state.cancel_requested
        self._held[job.job_id] = held
        self._changed.set()
        try:
            if msg.metadata.num_delivered > MAX_DELIVERIES:
                cause = f"the job was given to workers {MAX_DELIVERIES} times and none got to its end"
                await self._end(held, JobStatus.FAILED, error=ErrorBody(code="worker_died", message=cause))
            else:
                await self._run(held)
            await insist(lambda: self._queue.end_callback(job))
            return held.msg
        finally:
            if held.look is not None:
                held.look.cancel()
            del self._held[job.job_id]
            self._changed.set()

    async def _look(self, held: Held) -> None:
        """Read the state of a job that has been begun meanwhile."""
        held.stored = await insist(lambda: self._queue.begin(held.job))
        if held.stored.state.status.final or held.stored.state.cancel_requested:
            held.cancelled = True
            with contextlib.suppress(ComfyUIError):
                await self._comfy.cancel(held.job.job_id)

    async def _run(self, held: Held) -> None:
        job = held.job
        execution = Execution(
            self._comfy, self._queue, held, self.worker_id, watched=lambda: self._is_watched(job.job_id)
        )
        try:
            workflow = await self._bind(held)
            result = await execution.run(workflow)
            held.drawn.set()
            self._run_seconds = 0.8 * self._run_seconds + 0.2 * held.run_seconds()
            self._shorter.set()
            if job.model is not None:
                self._report.loaded.add(job.model)
            if job.kind is JobKind.LOAD:
                await self._end(held, JobStatus.DONE, loaded=result.first("loaded"))
            else:
                image_format, images = await execution.collect(result)
                warnings = [*job.warnings, *result.texts("warnings")]
                await self._end(held, JobStatus.DONE, image_format=image_format, images=images, warnings=warnings)
        except Interrupted as error:
            if held.released and not held.cancelled:
                raise Released from error
            if held.cancelled and held.stored.state.attempts and held.redelivered:
                await self._comfy.cancel(job.job_id)
            cause = "the job was cancelled" if held.cancelled else "the job was stopped in ComfyUI"
            body = ErrorBody(code="cancelled", message=cause)
            await self._end(held, JobStatus.CANCELLED, error=body)
        except Unavailable:
            raise  # The broker is away for long: neither done nor failed, but to be delivered again.
        except (ComfyUIError, BridgeError) as error:
            await self._end(held, JobStatus.FAILED, error=describe(error, held.graph))
        except Exception as error:
            # The barrier of this slot: whatever goes wrong in one job is told to its caller and ends there.
            log.exception("job %s failed", job.job_id)
            await self._end(held, JobStatus.FAILED, error=describe(error, held.graph))
        finally:
            await execution.close()

    async def _bind(self, held: Held) -> dict | None:
        """Set the job's graph; returns its editor format."""
        if held.job.kind is JobKind.LOAD:
            held.graph = load_graph(held.job.model or "")
            return None
        held.mode = self._modes.get(held.job.mode)
        await self._cleaner.resting()
        values = await inputs.place(self._queue, self._comfy, held.mode, held.job.parameters)
        held.graph, workflow = held.mode.bind(values)
        return workflow or None  # A mode may be in API format only.

    async def _end(self, held: Held, status: JobStatus, **changes: object) -> None:
        """Write the final state, unless somebody has written one already, and tell it."""
        held.drawn.set()
        finished_at = held.ended_at()
        await held.looked()
        stored = held.stored
        while not stored.state.status.final:
            state = stored.state
            started_at = held.started_at or state.started_at or finished_at
            attempts = max(state.attempts, held.started_at is not None)  # one that was too short to be noted
            ended = state.moved(
                status,
                attempts=attempts,
                started_at=started_at,
                finished_at=finished_at,
                worker=self.worker_id,
                **changes,
            )
            if await self._wrote(ended, stored.revision):
                await self._queue.announce(ended, began=held.brief)
                return
            stored = await insist(lambda: self._queue.stored_state(held.job.job_id))
            if stored.state == ended:  # It was written, only the answer was lost.
                await self._queue.announce(ended, began=held.brief)

    async def _wrote(self, state: JobState, revision: int) -> bool:
        return await insist(lambda: self._queue.advance(StoredState(state, revision))) is not None

    # -- what others ask ---------------------------------------------------------------------------------------------

    async def _on_cancel(self, msg: Msg) -> None:
        held = self._held.get(msg.subject.rpartition(".")[2])
        if held is None:
            return
        held.cancelled = True
        with contextlib.suppress(ComfyUIError):  # One that is away has lost the run; `Execution` sees the wish then.
            await self._comfy.cancel(held.job.job_id)
        if msg.reply:
            await msg.respond(b"")

    async def _on_watch(self, msg: Msg) -> None:
        now = time.monotonic()
        self._watched = {job_id: until for job_id, until in self._watched.items() if until > now}
        self._watched[msg.subject.rpartition(".")[2]] = now + 2 * WATCH_S

    def _is_watched(self, job_id: str) -> bool:
        return self._watched.get(job_id, 0.0) > time.monotonic()

    async def _on_offer(self, msg: Msg) -> None:
        """Another worker offers a job whose model lies in our memory."""
        ahead = sum(not held.drawn.is_set() for held in self._held.values())
        free = self._report.usable and ahead < MAX_SLOTS and (not ahead or ahead * self._run_seconds <= AHEAD_S)
        if free:
            self._spawn(self._handle(handed_over(self._queue.nc, msg), asyncio.Event(), handed=True))
        await msg.respond(TAKEN if free else BUSY)

    def _uploads(self) -> list[str]:
        bucket = self._queue.names.inputs
        return [name for held in self._held.values() for name in inputs.upload_names(held.job.parameters, bucket)]

    async def _on_roll_call(self, _: Msg) -> None:
        """A gateway has just started: it is told of this worker, and how far its jobs are."""
        await self._report.tell(self._held)
        with contextlib.suppress(*BROKER_ERRORS):
            for event in [held.progress for held in self._held.values() if held.progress is not None]:
                await self._queue.publish(event)

    async def _beat(self) -> None:
        """The heartbeat, and one at every change."""
        read_at = None
        while True:
            if read_at is None or time.monotonic() - read_at >= STATUS_INTERVAL_S:
                await self._report.look()
                read_at = time.monotonic()
            await self._report.tell(self._held)
            await self._release()
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), RELEASE_AFTER_S if self._held else STATUS_INTERVAL_S)
                await asyncio.sleep(0.2)  # Changes come in crowds.

    async def _release(self) -> None:
        """Give back what waits behind a long job while another worker is idle."""
        now = time.monotonic()
        for held in list(self._held.values()):
            if held.waits and now - held.held_since > RELEASE_AFTER_S and self._roster.idle(but=self.worker_id):
                held.released = True
                with contextlib.suppress(ComfyUIError):
                    await self._comfy.cancel(held.job.job_id)

    async def _on_plan(self, msg: Msg) -> None:
        if msg.reply:
            await msg.respond(await answer_plan(self._comfy, msg.data))

    async def _on_options(self, msg: Msg) -> None:
        if msg.reply:
            await msg.respond(await answer_options(self._comfy, msg.data))


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
            await Worker(queue, comfy, modes, worker_id).run()
    finally:
        await nc.close()
