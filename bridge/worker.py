"""The worker: takes jobs from the queue, runs each on its one ComfyUI, reports, and only then acknowledges."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout

from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIError, ComfyUIUnavailable, Interrupted, JobLost
from bridge.comfyui.history import RunResult
from bridge.comfyui.messages import Event, NodeStarted, Preview, Progress, Started
from bridge.contract import (
    EXTENSIONS,
    ErrorBody,
    ErrorEnvelope,
    ImageFormat,
    ImageObject,
    Job,
    JobEvent,
    JobKind,
    JobStatus,
    ModelInfoResponse,
)
from bridge.errors import BridgeError, Unavailable
from bridge.failures import describe
from bridge.jobs import (
    ACK_WAIT_S,
    BROKER_ERRORS,
    CANCEL_SUBJECT,
    HEARTBEAT_S,
    MODEL_INFO_SUBJECT,
    JobQueue,
    StoredState,
    connect,
)
from bridge.modes import SHIPPED_WORKFLOWS, Graph, ModeLibrary
from bridge.settings import Settings

log = logging.getLogger(__name__)

SLOTS = 2
"""Jobs held at once: one runs, the next already waits in ComfyUI, so that the device is never idle between two."""
MAX_DELIVERIES = 3
"""A job that took so many workers down with it has failed."""
MAX_ATTEMPTS = 3
"""Runs of one job, if ComfyUI loses it by a restart."""
COMFYUI_WAIT_S = 90.0
"""How long a job waits for a ComfyUI that went away while the job ran."""
FETCH_WAIT_S = 5.0
PACK_ROUTE = "/neurolux/models"
FORMATS: Mapping[str, ImageFormat] = {extension: name for name, extension in EXTENSIONS.items()}


@dataclass
class Held:
    """A job in one of the worker's slots."""

    job: Job
    stored: StoredState
    redelivered: bool
    graph: Graph = field(default_factory=dict)
    started_at: float | None = None
    cancelled: bool = False

    def note(self, event: Event) -> None:
        """Remember when ComfyUI began; the relay may come to the event only later."""
        if isinstance(event, Started) and self.started_at is None:
            self.started_at = time.time()


class Worker:
    """One worker and its ComfyUI."""

    def __init__(self, queue: JobQueue, comfy: ComfyUI, modes: ModeLibrary) -> None:
        self._queue = queue
        self._comfy = comfy
        self._modes = modes
        self._held: dict[str, Held] = {}

    async def run(self) -> None:
        """Serve until cancelled. Jobs that are running then are redelivered to the next worker."""
        nc = self._queue.nc
        await nc.subscribe(MODEL_INFO_SUBJECT, queue="workers", cb=self._on_model_info)
        await nc.subscribe(f"{CANCEL_SUBJECT}.*", cb=self._on_cancel)
        async with asyncio.TaskGroup() as group:
            for _ in range(SLOTS):
                group.create_task(self._serve())

    async def _serve(self) -> None:
        """One slot."""
        subscription = None
        while True:
            try:
                if subscription is None:
                    subscription = await self._queue.subscribe()
                await self._comfyui_ready()
                [msg] = await subscription.fetch(1, timeout=FETCH_WAIT_S)
                await self._take(msg)
            except NatsTimeout:
                continue
            except (BridgeError, *BROKER_ERRORS) as error:
                log.warning("the queue is out of reach: %s", error)
                subscription = None
                await asyncio.sleep(1.0)

    async def _comfyui_ready(self) -> None:
        """Wait until ComfyUI answers: a job stays in the queue, where its state is true, until it can be run."""
        while True:
            try:
                await self._comfy.system_stats()
                return
            except ComfyUIError:
                await asyncio.sleep(0.5)

    async def _take(self, msg: Msg) -> None:
        job = Job.model_validate_json(msg.data)
        stored = await self._queue.begin(job)
        if not stored.state.status.final:
            held = self._held[job.job_id] = Held(job, stored, redelivered=msg.metadata.num_delivered > 1)
            heartbeat = asyncio.create_task(self._heartbeat(msg))
            try:
                if msg.metadata.num_delivered > MAX_DELIVERIES:
                    cause = f"the worker died {MAX_DELIVERIES} times while it ran this job"
                    await self._end(held, JobStatus.FAILED, error=ErrorBody(code="worker_died", message=cause))
                else:
                    await self._run(held)
            finally:
                heartbeat.cancel()
                del self._held[job.job_id]
        await msg.ack_sync(timeout=ACK_WAIT_S)

    async def _heartbeat(self, msg: Msg) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            with contextlib.suppress(*BROKER_ERRORS):
                await msg.in_progress()

    async def _run(self, held: Held) -> None:
        job = held.job
        try:
            held.graph, workflow = self._graph(job)
            result = await self._execute(held, workflow)
            if job.kind is JobKind.LOAD:
                await self._end(held, JobStatus.DONE, loaded=_first(result, "loaded"))
            else:
                image_format, images = await self._collect(held, result)
                warnings = [*job.warnings, *_all(result, "warnings")]
                await self._end(held, JobStatus.DONE, image_format=image_format, images=images, warnings=warnings)
        except Interrupted:
            cause = "the job was cancelled" if held.cancelled else "the job was stopped in ComfyUI"
            body = ErrorBody(code="cancelled", message=cause)
            await self._end(held, JobStatus.CANCELLED, error=body)
        except (ComfyUIError, BridgeError) as error:
            await self._end(held, JobStatus.FAILED, error=describe(error, held.graph))
        except Exception as error:
            # The barrier of this slot: whatever goes wrong in one job is told to its caller and ends there.
            log.exception("job %s failed", job.job_id)
            await self._end(held, JobStatus.FAILED, error=describe(error, held.graph))

    def _graph(self, job: Job) -> tuple[Graph, dict | None]:
        if job.kind is JobKind.LOAD:
            return load_graph(job.model or ""), None
        return self._modes.get(job.mode).bind(job.parameters)

    async def _execute(self, held: Held, workflow: dict | None) -> RunResult:
        """Run the graph; run it again if ComfyUI was restarted under it."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                async with self._relaying(held) as on_event:
                    if held.redelivered and attempt == 1:
                        # The worker that died may have sent it: it must not be drawn twice.
                        with contextlib.suppress(JobLost):
                            return await self._comfy.attach(held.job.job_id, on_event=on_event)
                    return await self._comfy.run(
                        held.graph, prompt_id=held.job.job_id, workflow=workflow, on_event=on_event
                    )
            except (JobLost, ComfyUIUnavailable) as error:
                if attempt == MAX_ATTEMPTS or held.cancelled:
                    raise
                if isinstance(error, JobLost) and not error.disconnected:
                    raise Interrupted(held.job.job_id) from error  # Somebody deleted it from ComfyUI's queue.
                log.warning("job %s: %s; trying again", held.job.job_id, error)
                try:
                    async with asyncio.timeout(COMFYUI_WAIT_S):
                        await self._comfyui_ready()
                except TimeoutError:
                    raise error from None
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def _relaying(self, held: Held) -> AsyncIterator[Callable[[Event], None]]:
        """Give the function that takes ComfyUI's events; on the way out, all of them have been told."""
        events: asyncio.Queue[Event | None] = asyncio.Queue()

        def take(event: Event) -> None:
            held.note(event)
            events.put_nowait(event)

        relay = asyncio.create_task(self._relay(held, events))
        try:
            yield take
        finally:
            events.put_nowait(None)
            await relay

    async def _relay(self, held: Held, events: asyncio.Queue[Event | None]) -> None:
        """Tell what ComfyUI tells, in the terms of the job.

        Events are hints: one that cannot be told, because the broker is away, must not fail a job that runs.
        """
        phase = ""
        while (event := await events.get()) is not None:
            if isinstance(event, NodeStarted):
                phase = _phase(held.graph, event.node)
            with contextlib.suppress(Unavailable, ComfyUIError, *BROKER_ERRORS):
                await self._tell(held, event, phase)

    async def _tell(self, held: Held, event: Event, phase: str) -> None:
        job_id = held.job.job_id
        match event:
            case Started():
                await self._started(held)
            case Progress(_, value, maximum):
                told = JobEvent(type="progress", job_id=job_id, phase=phase, value=value, maximum=maximum)
                await self._queue.publish(told)
            case Preview(_, image, mime):
                encoded = base64.b64encode(image).decode()
                await self._queue.publish(JobEvent(type="preview", job_id=job_id, image_b64=encoded, mime=mime))

    async def _started(self, held: Held) -> None:
        if held.stored.state.status is JobStatus.RUNNING:
            return
        running = held.stored.state.moved(JobStatus.RUNNING, started_at=held.started_at)
        written = await self._queue.advance(StoredState(running, held.stored.revision))
        if written is None:  # Cancelled while it waited in ComfyUI's queue.
            await self._comfy.cancel(held.job.job_id)
            return
        held.stored = written
        await self._queue.publish(JobEvent(type="started", job_id=held.job.job_id))

    async def _collect(self, held: Held, result: RunResult) -> tuple[ImageFormat, list[ImageObject]]:
        """Bring the pictures of the result nodes from ComfyUI into the object store."""
        files: list[dict] = []
        mode = self._modes.get(held.job.mode)
        for node_id in mode.results:
            files += (result.outputs.get(node_id) or {}).get("images", [])
        if not files:
            raise BridgeError(f"mode {mode.name} ended without a picture; does a result node lack its input?")
        extension = files[0]["filename"].rpartition(".")[2]
        image_format = FORMATS.get(extension, "png")
        images = []
        for index, file in enumerate(files):
            data = await self._comfy.view(file["filename"], file.get("subfolder", ""), file.get("type", "output"))
            images.append(await self._queue.store_image(held.job.job_id, index, image_format, data))
        return image_format, images

    async def _end(self, held: Held, status: JobStatus, **changes: object) -> None:
        """Write the final state, unless somebody has written one already, and tell it."""
        now = time.time()
        stored = held.stored
        while True:
            state = stored.state
            ended = state.moved(
                status, started_at=state.started_at or held.started_at or now, finished_at=now, **changes
            )
            if await self._queue.advance(StoredState(ended, stored.revision)):
                await self._queue.announce(ended)
                return
            stored = await self._queue.stored_state(held.job.job_id)
            if stored.state.status.final:
                return

    async def _on_cancel(self, msg: Msg) -> None:
        held = self._held.get(msg.subject.rpartition(".")[2])
        if held is None:
            return
        held.cancelled = True
        await self._comfy.cancel(held.job.job_id)
        if msg.reply:
            await msg.respond(b"")

    async def _on_model_info(self, msg: Msg) -> None:
        if not msg.reply:
            return
        try:
            info = await model_info(self._comfy)
            await msg.respond(info.model_dump_json().encode())
        except BridgeError as error:
            await msg.respond(error.envelope().model_dump_json().encode())
        except Exception as error:
            log.exception("model_info failed")
            body = ErrorBody(code="internal_error", message=f"{type(error).__name__}: {error}")
            await msg.respond(ErrorEnvelope(error=body).model_dump_json().encode())


async def model_info(comfy: ComfyUI) -> ModelInfoResponse:
    """What the node pack in this ComfyUI says of its models. Raises Unavailable."""
    try:
        await comfy.system_stats()
    except ComfyUIError as error:
        raise Unavailable("ComfyUI is down or still starting; try again in a moment") from error
    try:
        return ModelInfoResponse.model_validate(await comfy.get_json(PACK_ROUTE))
    except ComfyUIError as error:
        raise Unavailable(
            "ComfyUI runs without the NeuroLux node pack; link this repository into its custom_nodes folder and "
            "restart it, or let imagegen start its own ComfyUI"
        ) from error


def load_graph(model: str) -> Graph:
    """The graph that loads a model and does nothing else."""
    loader = {"model": model, "precision": "auto", "offload": "auto", "steps": 0}
    return {
        "1": {"class_type": "NeuroLuxLoadModel", "inputs": loader, "_meta": {"title": "Load Model"}},
        "2": {"class_type": "NeuroLuxWarmUp", "inputs": {"pipeline": ["1", 0]}, "_meta": {"title": "Load Only"}},
    }


def _first(result: RunResult, key: str) -> dict:
    """The first record under `key` of any node's output."""
    return next((output[key][0] for output in result.outputs.values() if output and output.get(key)), {})


def _all(result: RunResult, key: str) -> list[str]:
    """The texts under `key` of all nodes' outputs, each once. A node warns of what it could not make use of."""
    return list(dict.fromkeys(text for output in result.outputs.values() for text in (output or {}).get(key, [])))


def _phase(graph: Graph, node: str) -> str:
    info = graph.get(node, {})
    return info.get("_meta", {}).get("title") or info.get("class_type", "")


async def run_worker(settings: Settings, nats_url: str, comfyui_url: str) -> None:
    """Work until cancelled. Raises Unavailable without NATS."""
    nc = await connect(nats_url, "imagegen-worker")
    try:
        queue = await JobQueue.open(nc, max_pending=settings.max_pending)
        async with ComfyUI(comfyui_url) as comfy:
            await Worker(queue, comfy, ModeLibrary([SHIPPED_WORKFLOWS, settings.workflows])).run()
    finally:
        await nc.close()
