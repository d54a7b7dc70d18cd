"""The durable job queue on NATS JetStream: the one path from every door to every worker.

Three stores, all on disk at the broker: a work-queue stream holds each accepted job until a worker acknowledges it, a
key-value bucket holds each job's state, an object store its pictures. What happens to a job while it runs is told on
core NATS, one subject a job; those events are hints, the bucket is the truth.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import (
    ConsumerConfig,
    DiscardPolicy,
    Header,
    KeyValueConfig,
    ObjectStoreConfig,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, BadRequestError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue
from nats.js.object_store import ObjectStore

from bridge.contract import EXTENSIONS, ImageFormat, ImageObject, Job, JobEvent, JobResultEvent, JobState, JobStatus
from bridge.errors import QueueFull, Unavailable, UnknownJob

log = logging.getLogger(__name__)

SUBJECT_PREFIX = "ai.vision.imagegen"
REQUEST_SUBJECT = f"{SUBJECT_PREFIX}.request"
RESULT_SUBJECT = f"{SUBJECT_PREFIX}.result"
MODEL_INFO_SUBJECT = f"{SUBJECT_PREFIX}.model_info"
JOBS_SUBJECT = f"{SUBJECT_PREFIX}.jobs"
EVENTS_SUBJECT = f"{SUBJECT_PREFIX}.events"
CANCEL_SUBJECT = f"{SUBJECT_PREFIX}.cancel"

STREAM = "IMAGEGEN_JOBS"
CONSUMER = "imagegen-workers"
STATE_BUCKET = "imagegen-jobs"
IMAGE_BUCKET = "imagegen-images"

RETENTION_S = 24 * 3600.0
"""How long the broker keeps states and pictures. The pictures also lie in ComfyUI's output folder, for good."""
DEDUPLICATION_S = 3600.0
ACK_WAIT_S = 30.0
"""A worker that is silent for so long is taken for dead, and its job goes to another."""
HEARTBEAT_S = 10.0
STATE_POLL_S = 2.0
"""How often a waiter asks the bucket whether it missed the event."""
CONNECT_PATIENCE_S = 10.0
LISTENER_BACKLOG = 256
"""Events kept for one slow listener; then its oldest are dropped, never anyone else's."""
STREAM_FULL_ERROR = 10077
STREAM_CONFIG_ERROR = 10058
BROKER_ERRORS = (nats.errors.Error, OSError, asyncio.TimeoutError)


async def connect(url: str, name: str, *, patience_s: float = CONNECT_PATIENCE_S) -> Client:
    """A connection that outlives restarts of the broker. Raises Unavailable if there is none in `patience_s`."""
    try:
        async with asyncio.timeout(patience_s):
            return await nats.connect(
                url, name=name, max_reconnect_attempts=-1, reconnect_time_wait=0.25, error_cb=_log_error
            )
    except BROKER_ERRORS as error:
        raise Unavailable(f"no NATS server answers at {url}: {error or type(error).__name__}") from error


async def _log_error(error: Exception) -> None:
    # What a subscription's callback raises ends here too, and would otherwise be lost without a trace.
    if isinstance(error, (nats.errors.Error, OSError)):
        log.debug("NATS: %r", error)
    else:
        log.error("NATS callback failed", exc_info=error)


@contextlib.contextmanager
def broker_errors() -> Iterator[None]:
    """Turn what the NATS client raises into Unavailable."""
    try:
        yield
    except BROKER_ERRORS as error:
        raise Unavailable(f"the NATS server did not answer ({error or type(error).__name__}); try again") from error


@dataclass(frozen=True)
class StoredState:
    """A job's state and the revision that it had when it was read, for compare-and-set."""

    state: JobState
    revision: int


class JobQueue:
    """Jobs, their states, events and pictures. One for each process; safe for many tasks of one event loop."""

    def __init__(self, nc: Client, js: JetStreamContext, states: KeyValue, images: ObjectStore) -> None:
        self.nc = nc
        self._js = js
        self._states = states
        self._images = images
        self._listeners: dict[str, list[asyncio.Queue[JobEvent]]] = {}

    @classmethod
    async def open(cls, nc: Client, *, max_pending: int) -> JobQueue:
        """Make the stores where they are missing. `max_pending` bounds the jobs that wait or run, over all gateways."""
        js = nc.jetstream()
        stream = StreamConfig(
            name=STREAM,
            subjects=[f"{JOBS_SUBJECT}.>"],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            # The broker itself refuses what is over the bound, so that it holds for any number of gateways.
            max_msgs=max_pending,
            discard=DiscardPolicy.NEW,
            duplicate_window=DEDUPLICATION_S,
        )
        with broker_errors():
            try:
                await js.add_stream(stream)
            except BadRequestError as error:
                if error.err_code != STREAM_CONFIG_ERROR:
                    raise
                await js.update_stream(stream)
            states = await js.create_key_value(
                KeyValueConfig(bucket=STATE_BUCKET, ttl=RETENTION_S, storage=StorageType.FILE, direct=True)
            )
            images = await js.create_object_store(
                IMAGE_BUCKET, ObjectStoreConfig(ttl=int(RETENTION_S), storage=StorageType.FILE)
            )
        return cls(nc, js, states, images)

    # --- the gateway's side ------------------------------------------------------------------------------------

    async def submit(self, job: Job) -> JobState:
        """Accept a job; when this returns, the broker has it on disk.

        A job id that was submitted before gives the state of that job. Raises QueueFull and Unavailable.
        """
        if not self.nc.is_connected:
            raise Unavailable("the connection to the NATS server is down; it is being restored")
        state = JobState.queued(job)
        try:
            ack = await self._js.publish(
                f"{JOBS_SUBJECT}.{job.kind}", job.model_dump_json().encode(), headers={Header.MSG_ID: job.job_id}
            )
        except APIError as error:
            if error.err_code == STREAM_FULL_ERROR:
                raise QueueFull("the queue is full; try again when a job has finished") from error
            raise Unavailable(f"the NATS server refused the job: {error.description}") from error
        except BROKER_ERRORS as error:
            raise Unavailable(f"the NATS server did not take the job: {error or type(error).__name__}") from error
        if ack.duplicate:
            with contextlib.suppress(UnknownJob):
                return await self.state(job.job_id)
        with broker_errors():
            try:
                await self._states.create(job.job_id, state.model_dump_json().encode())
            except KeyWrongLastSequenceError:  # A worker was faster.
                return await self.state(job.job_id)
        return state

    async def state(self, job_id: str) -> JobState:
        """The job's present state. Raises UnknownJob."""
        return (await self.stored_state(job_id)).state

    async def stored_state(self, job_id: str) -> StoredState:
        """The job's present state with its revision. Raises UnknownJob."""
        with broker_errors():
            try:
                entry = await self._states.get(job_id)
            except KeyNotFoundError as error:
                raise UnknownJob(f"no job has the id {job_id!r}, or it is older than a day", field="job_id") from error
        assert entry.value is not None
        assert entry.revision is not None
        return StoredState(JobState.model_validate_json(entry.value), entry.revision)

    @contextlib.contextmanager
    def listen(self, job_id: str) -> Iterator[asyncio.Queue[JobEvent]]:
        """Events of one job, from now on. Register before the job is submitted, so that none can be missed."""
        events: asyncio.Queue[JobEvent] = asyncio.Queue(LISTENER_BACKLOG)
        self._listeners.setdefault(job_id, []).append(events)
        try:
            yield events
        finally:
            self._listeners[job_id].remove(events)
            if not self._listeners[job_id]:
                del self._listeners[job_id]

    async def start_listening(self) -> None:
        """Subscribe to the events of all jobs; one subscription serves every listener of this process."""
        await self.nc.subscribe(f"{EVENTS_SUBJECT}.*", cb=self._on_event)

    async def _on_event(self, msg: Msg) -> None:
        listeners = self._listeners.get(msg.subject.rpartition(".")[2])
        if not listeners:
            return
        event = JobEvent.model_validate_json(msg.data)
        for events in listeners:
            if events.full():
                events.get_nowait()
            events.put_nowait(event)

    async def follow(self, job_id: str, events: asyncio.Queue[JobEvent]) -> AsyncIterator[JobEvent]:
        """Every event up to and including the final one, even if the broker lost it: the state is polled beside."""
        while True:
            try:
                event = await asyncio.wait_for(events.get(), STATE_POLL_S)
            except TimeoutError:
                try:
                    state = await self.state(job_id)
                except (Unavailable, UnknownJob):  # The broker is away, or the job is not submitted yet.
                    continue
                if not state.status.final:
                    continue
                event = final_event(state)
            yield event
            if event.final:
                return

    async def cancel(self, job_id: str) -> JobState:
        """Cancel a job that waits or runs; a job that has ended stays as it is. Returns the state it is in then.

        Raises UnknownJob, and Unavailable if the worker that runs it does not react.
        """
        with self.listen(job_id) as events:
            while True:
                stored = await self.stored_state(job_id)
                if stored.state.status.final:
                    return stored.state
                if stored.state.status is JobStatus.RUNNING:
                    break
                cancelled = stored.state.moved(JobStatus.CANCELLED)
                if await self.advance(StoredState(cancelled, stored.revision)):
                    # A worker may hold it already, in its ComfyUI's own queue.
                    await self.nc.publish(f"{CANCEL_SUBJECT}.{job_id}")
                    await self.announce(cancelled)
                    return cancelled
            try:
                with broker_errors():
                    await self.nc.request(f"{CANCEL_SUBJECT}.{job_id}", b"", timeout=ACK_WAIT_S)
                async with asyncio.timeout(ACK_WAIT_S):
                    async for event in self.follow(job_id, events):
                        if event.final and event.state:
                            return event.state
            except TimeoutError as error:
                raise Unavailable(f"the worker of job {job_id} did not confirm the cancellation") from error
        raise Unavailable(f"the worker of job {job_id} did not confirm the cancellation")

    async def image(self, image: ImageObject) -> bytes:
        """A picture's bytes. Raises UnknownJob if the retention has removed it."""
        with broker_errors():
            try:
                return (await self._images.get(image.name)).data or b""
            except nats.js.errors.NotFoundError as error:
                raise UnknownJob(f"the picture {image.name} is no longer kept; ask for it again") from error

    # --- the worker's side -------------------------------------------------------------------------------------

    async def subscribe(self) -> JetStreamContext.PullSubscription:
        """This worker's share of the queue. Deliveries are redone after ACK_WAIT_S without a sign of life."""
        with broker_errors():
            return await self._js.pull_subscribe(
                f"{JOBS_SUBJECT}.>",
                durable=CONSUMER,
                stream=STREAM,
                # The worker bounds the deliveries itself: the broker would drop the job without a word.
                config=ConsumerConfig(ack_wait=ACK_WAIT_S, max_deliver=-1),
            )

    async def begin(self, job: Job) -> StoredState:
        """The job's state, made if the gateway has not yet written it."""
        with contextlib.suppress(UnknownJob):
            return await self.stored_state(job.job_id)
        state = JobState.queued(job)
        with broker_errors():
            try:
                return StoredState(state, await self._states.create(job.job_id, state.model_dump_json().encode()))
            except KeyWrongLastSequenceError:
                return await self.stored_state(job.job_id)

    async def advance(self, stored: StoredState) -> StoredState | None:
        """Write a state if nobody has changed it since `stored.revision`; None if somebody has."""
        with broker_errors():
            try:
                revision = await self._states.update(
                    stored.state.job_id, stored.state.model_dump_json().encode(), last=stored.revision
                )
            except KeyWrongLastSequenceError:
                return None
        return StoredState(stored.state, revision)

    async def announce(self, state: JobState) -> None:
        """Tell listeners that a job ended, and publish its result event."""
        await self.publish(final_event(state))
        await self.nc.publish(RESULT_SUBJECT, JobResultEvent.of(state).model_dump_json().encode())

    async def publish(self, event: JobEvent) -> None:
        """Tell listeners what happened; nobody hears it twice, and somebody who is away misses it."""
        await self.nc.publish(f"{EVENTS_SUBJECT}.{event.job_id}", event.model_dump_json(exclude_none=True).encode())

    async def store_image(self, job_id: str, index: int, image_format: ImageFormat, data: bytes) -> ImageObject:
        """Keep a picture."""
        with broker_errors():
            info = await self._images.put(f"{job_id}/{index}.{EXTENSIONS[image_format]}", data)
        assert info.size is not None
        assert info.digest is not None
        return ImageObject(bucket=IMAGE_BUCKET, name=info.name, size=info.size, digest=info.digest)


def final_event(state: JobState) -> JobEvent:
    """The last event of a job that ended."""
    kinds = {JobStatus.DONE: "done", JobStatus.FAILED: "failed", JobStatus.CANCELLED: "cancelled"}
    return JobEvent.model_validate({"type": kinds[state.status], "job_id": state.job_id, "state": state})
