"""One job on one ComfyUI: run it, follow it through the deaths of ComfyUI, bring its images to the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nats.aio.msg import Msg

from bridge.broker.jobs import JobQueue, StoredState
from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIError, ComfyUIUnavailable, Interrupted, JobLost, WornOut
from bridge.comfyui.history import RunResult
from bridge.comfyui.messages import Event, NodeDone, Started
from bridge.contract import (
    EXTENSIONS,
    IMAGE_FORMATS,
    BridgeError,
    FileFormat,
    ImageObject,
    Job,
    JobEvent,
    JobStatus,
    Unavailable,
    format_of,
)
from bridge.modes.graphs import Graph
from bridge.modes.library import Mode
from bridge.worker.relay import Relay

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Runs of one job that may be begun. One that took so many workers or ComfyUIs down with it has failed."""
MAX_RESENDS = 10
"""How often a job is sent to a ComfyUI that dies before it comes to it."""
COMFYUI_WAIT_S = 90.0
"""How long a job waits for a ComfyUI that went away while the job was there."""
RUNNING_AFTER_S = 0.1
"""A run is written down as such when it has lasted so long: shorter ones cost one write less."""
BROKER_WAIT_S = 120.0
"""How long a job that has run waits for a broker that went away; then it is left to be delivered again."""
RETRY_S = 0.25

Answer = TypeVar("Answer")


@dataclass
class Held:
    """A job in a worker's hands. `msg` is its newest delivery: what is acknowledged, and kept alive meanwhile."""

    job: Job
    msg: Msg
    stored: StoredState
    redelivered: bool
    mode: Mode | None = None
    graph: Graph = field(default_factory=dict)
    started_at: float | None = None
    cancelled: bool = False
    released: bool = False
    """It has not begun here, and goes to a worker that has nothing to do."""
    held_since: float = field(default_factory=time.monotonic)
    drawn: asyncio.Event = field(default_factory=asyncio.Event)
    """ComfyUI is through with it: the next job may follow."""
    brief: bool = False
    """It began, and ended before anybody was told so."""
    progress: JobEvent | None = None
    """The last that was told of how far it is."""
    look: asyncio.Task[None] | None = None
    """Sets `stored`, where the job was begun before its state had been read."""
    _began: float | None = None

    async def looked(self) -> None:
        """Wait until `stored` is what the broker has. Raises Unavailable."""
        if self.look is not None:
            await self.look

    def begin(self) -> None:
        """Remember when ComfyUI began; the event is told later."""
        if self._began is None:
            self.started_at, self._began = time.time(), time.monotonic()

    @property
    def waits(self) -> bool:
        """ComfyUI has not come to it yet."""
        return self._began is None and not self.drawn.is_set()

    def run_seconds(self) -> float:
        """How long ComfyUI has had it; 0 where it was not seen to begin."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def ended_at(self) -> float:
        """When it ended, by the wall clock as it was at the start: the clock may have been set since."""
        if self.started_at is None or self._began is None:
            return time.time()
        return self.started_at + time.monotonic() - self._began


async def insist(work: Callable[[], Awaitable[Answer]]) -> Answer:
    """Do something with the broker, again while it is away. Raises Unavailable when it stays away."""
    deadline = time.monotonic() + BROKER_WAIT_S
    while True:
        try:
            return await work()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(RETRY_S)


class Released(Exception):
    """A job that waited here is given back to the queue."""


class Execution:
    """The way of one job through ComfyUI."""

    def __init__(
        self, comfy: ComfyUI, queue: JobQueue, held: Held, worker_id: str, watched: Callable[[], bool]
    ) -> None:
        self._comfy = comfy
        self._queue = queue
        self._held = held
        self._worker_id = worker_id
        self._watched = watched
        self._images: dict[str, asyncio.Task[ImageObject]] = {}
        self._noting: asyncio.Task[None] | None = None  # set by an event of the run
        self._attached = False
        self._decided: asyncio.Future[bool]
        """How a try ended, once it has: True when its run was lost."""

    async def run(self, workflow: dict | None) -> RunResult:
        """Run the graph; run it again if ComfyUI was restarted under it. Raises ComfyUIError."""
        held, resent = self._held, 0
        # Whoever had it before may have sent it to this very ComfyUI: it must not be drawn twice.
        known = held.redelivered
        while True:
            try:
                return await self._run_once(workflow, attach=known)
            except (JobLost, ComfyUIUnavailable) as error:
                if held.cancelled:
                    raise Interrupted(held.job.job_id, requested=True) from error
                if isinstance(error, JobLost) and not error.disconnected:
                    raise Interrupted(held.job.job_id) from error  # Somebody deleted it from ComfyUI's queue.
                if resent >= MAX_RESENDS:
                    raise
                log.warning("job %s: %s; trying again", held.job.job_id, error)
                resent += 1
                await comfyui_back(self._comfy, error)
                # One that was only out of reach may still have it.
                known = isinstance(error, ComfyUIUnavailable)

    async def _run_once(self, workflow: dict | None, *, attach: bool) -> RunResult:
        """One try. A run that was begun and lost is written down before there is another."""
        self._decided = asyncio.get_running_loop().create_future()
        lost = False
        try:
            return await self._relayed(workflow, attach=attach)
        except (JobLost, ComfyUIUnavailable):
            lost = True
            raise
        finally:
            if not self._decided.done():
                self._decided.set_result(lost)
            noting, self._noting = self._noting, None
            if noting is not None:
                await noting

    async def _relayed(self, workflow: dict | None, *, attach: bool) -> RunResult:
        held, job_id = self._held, self._held.job.job_id
        relay = Relay(job_id, held.graph, self._tell, watched=self._watched)

        def take(event: Event) -> None:
            if isinstance(event, Started):
                held.begin()
                if self._noting is None:
                    self._noting = asyncio.create_task(self._note_running(self._attached))
            elif isinstance(event, NodeDone):
                self._node_done(event)
            relay.take(event)

        try:
            async with relay:
                self._attached = attach
                if attach:
                    with contextlib.suppress(JobLost):
                        return await self._comfy.attach(job_id, on_event=take)
                    self._attached = False
                if held.cancelled:
                    raise Interrupted(job_id, requested=True)
                if held.stored.state.attempts >= MAX_ATTEMPTS:
                    raise WornOut(held.stored.state.attempts)
                return await self._comfy.run(held.graph, prompt_id=job_id, workflow=workflow, on_event=take)
        finally:
            held.brief = relay.brief

    async def _tell(self, event: JobEvent) -> None:
        if event.type == "progress":
            self._held.progress = event
        await self._queue.publish(event)

    async def _note_running(self, attached: bool) -> None:
        """Write down that a run began, so that the next worker knows when this one dies of it."""
        held = self._held
        done, _ = await asyncio.wait({self._decided}, timeout=RUNNING_AFTER_S)
        if done and not self._decided.result():
            return  # It ended at once, and its end is what is written.
        await held.looked()
        while True:
            state = held.stored.state
            # A run that goes on since another worker began it has been counted.
            attempts = state.attempts + (not (attached and state.status is JobStatus.RUNNING))
            running = state.moved(
                JobStatus.RUNNING, started_at=held.started_at, attempts=attempts, worker=self._worker_id
            )
            stored = StoredState(running, held.stored.revision)
            written = await insist(lambda stored=stored: self._queue.advance(stored))
            if written is not None:
                held.stored = written
                break
            # Cancelled while it waited in ComfyUI's queue, or asked to be.
            held.stored = await insist(lambda: self._queue.stored_state(held.job.job_id))
            if held.stored.state.status.final or held.stored.state.cancel_requested:
                held.cancelled = True
                await self._comfy.cancel(held.job.job_id)
                return

    # -- images ----------------------------------------------------------------------------------------------------

    def _node_done(self, event: NodeDone) -> None:
        """Fetch images while ComfyUI still ends the run. With several results their order is only known later."""
        mode = self._held.mode
        if mode is not None and mode.results == (event.node,):
            for index, file in enumerate(event.output.get("images", [])):
                self._fetch(index, file, mode.result_name(event.node))

    def _fetch(self, index: int, file: Mapping[str, Any], result: str) -> asyncio.Task[ImageObject]:
        key = f"{index} {file.get('type')} {file.get('subfolder')} {file['filename']}"
        task = self._images.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._images[key] = asyncio.create_task(self._bring(index, file, result))
        return task

    async def _bring(self, index: int, file: Mapping[str, Any], result: str) -> ImageObject:
        name = file["filename"]
        kind = known_format(name)
        deadline = time.monotonic() + COMFYUI_WAIT_S
        while True:
            try:
                data = await self._comfy.view(name, file.get("subfolder", ""), file.get("type", "output"))
                break
            except ComfyUIUnavailable:  # It died after the run; the file is on its disk.
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RETRY_S)
        held = self._held
        stored = await insist(lambda: self._queue.store_image(held.job.job_id, index, kind, data, delivery=held.msg))
        return stored.model_copy(update={"result": result})

    async def collect(self, result: RunResult) -> tuple[FileFormat, list[ImageObject]]:
        """Bring the files of the result nodes from ComfyUI into the object store.

        The format is that of the first image, or of the first file where none is an image.
        """
        mode = self._held.mode
        assert mode is not None
        files = [
            (file, mode.result_name(node))
            for node in mode.results
            for file in (result.outputs.get(node) or {}).get("images", [])
        ]
        if not files:
            raise BridgeError(f"mode {mode.name} ended without an image; does a result node lack its input?")
        formats: list[FileFormat] = [known_format(file["filename"]) for file, _ in files]
        tasks = [self._fetch(index, file, name) for index, (file, name) in enumerate(files)]
        images: list[FileFormat] = [kind for kind in formats if kind in IMAGE_FORMATS]
        return (images or formats)[0], list(await asyncio.gather(*tasks))

    async def close(self) -> None:
        """Stop fetching what is not wanted any more."""
        unwanted = [task for task in self._images.values() if not task.done() or task.cancelled() or task.exception()]
        for task in unwanted:
            task.cancel()
        if unwanted:  # Else nothing is waited for: what follows goes out with what was just sent.
            await asyncio.gather(*unwanted, return_exceptions=True)


def known_format(filename: str) -> FileFormat:
    """What a result's file is, by its name. Raises BridgeError for a kind that no answer carries."""
    kind = format_of(filename)
    if kind is None:
        raise BridgeError(f"a result is the file {filename!r}; results may be {', '.join(EXTENSIONS.values())} files")
    return kind


async def comfyui_ready(comfy: ComfyUI) -> None:
    """Wait until ComfyUI answers: a job stays in the queue, where its state is true, until it can be run."""
    while not comfy.connected:
        try:
            await comfy.system_stats()
            return
        except ComfyUIError:
            await asyncio.sleep(0.5)


async def comfyui_back(comfy: ComfyUI, error: ComfyUIError) -> None:
    """Wait for a ComfyUI that went away; raises `error` when it stays away."""
    try:
        async with asyncio.timeout(COMFYUI_WAIT_S):
            await comfyui_ready(comfy)
    except TimeoutError:
        raise error from None
