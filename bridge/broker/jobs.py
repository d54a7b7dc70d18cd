"""The durable job queue on NATS JetStream: the one path from every API to every worker.

Three stores, all on the broker's disk: a work-queue stream holds each accepted job until a worker acknowledges it, a
key-value bucket holds its state, and an object store holds its images. Events of running jobs go over core NATS, one
subject a job; events are hints, the bucket is the truth.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import Header
from nats.js.client import JetStreamContext
from nats.js.errors import (
    APIError,
    KeyNotFoundError,
    KeyWrongLastSequenceError,
    NoStreamResponseError,
    NotFoundError,
)
from nats.js.kv import KeyValue
from pydantic import ValidationError

from bridge import logs, tracing
from bridge.broker import sizes
from bridge.broker.connection import BROKER_ERRORS, broker_errors
from bridge.broker.images import ImageStore
from bridge.broker.mailbox import Mailbox
from bridge.broker.nats_client import MessageTooLarge
from bridge.broker.priorities import JobSubscription, Turns, make_consumers, subject_of
from bridge.broker.stores import (
    NO_SPACE_ERRORS,
    bucket_config,
    callbacks_config,
    is_at_its_bound,
    make_stream,
    queue_config,
    span,
)
from bridge.contract import (
    EXTENSIONS,
    FileFormat,
    ImageExpired,
    ImageObject,
    Job,
    JobEvent,
    JobProgress,
    JobResultEvent,
    JobState,
    JobStatus,
    QueueFull,
    StorageFull,
    Unavailable,
    UnknownJob,
    UnreadableRecord,
    read_answer,
)
from bridge.names import Names
from bridge.settings import Retention

log = logging.getLogger(__name__)

HEARTBEAT_S = 4.0
STATE_POLL_S = 2.0
"""How often a reader checks the bucket for an event that it missed."""
MAX_PROGRESS = 4096
"""The number of running jobs whose last progress is remembered."""
PROGRESS_START = b'{"type":"progress"'
FINAL_STARTS = (b'{"type":"done"', b'{"type":"failed"', b'{"type":"cancelled"')
"""The first bytes of events of these types: `type` is the first field of JobEvent. Most events need no parsing here."""
WATCH_S = 5.0
"""How often a gateway repeats that someone watches a job's previews. A worker forgets it after twice as long."""


@dataclass(frozen=True)
class StoredState:
    """A job's state with its revision, for compare-and-set."""

    state: JobState
    revision: int


class JobQueue:
    """Jobs, their states, events and images. One for each process; safe for many tasks of one event loop."""

    def __init__(
        self,
        nc: Client,
        names: Names,
        js: JetStreamContext,
        images: ImageStore,
        inputs: ImageStore,
        retention: Retention,
        max_pending: int,
    ) -> None:
        self.nc = nc
        self.names = names
        self._js = js
        self._states: KeyValue
        """Set by `open`, once the bucket is there."""
        self._images = images
        self.inputs = inputs
        self.retention = retention
        self._max_pending = max_pending
        self.more_stores: list[Callable[[], Awaitable[object]]] = []
        """Makes the stores of others that this process needs, as often as it is called."""
        self.noted: Callable[[JobState, int], None] | None = None
        """Called with every state that this process writes for a new or cancelled job, and its revision."""
        self.accepted: Callable[[JobState], None] | None = None
        """Called once for every job that this process queues."""
        self._turns = Turns()
        self._listeners: dict[str, list[Mailbox]] = {}
        self._progress: OrderedDict[str, bytes] = OrderedDict()

    @classmethod
    async def open(
        cls,
        nc: Client,
        *,
        max_pending: int,
        names: Names = Names(),  # noqa: B008 - frozen
        retention: Retention = Retention(),  # noqa: B008 - frozen
    ) -> JobQueue:
        """Create the stores that are missing. `max_pending` bounds the jobs that wait or run, over all gateways."""
        js = nc.jetstream()
        images = ImageStore(js, names.images, retention.images_bytes)
        inputs = ImageStore(js, names.inputs, retention.images_bytes, keeps=True)
        with broker_errors():
            queue = cls(nc, names, js, images, inputs, retention, max_pending)
            await queue.make_stores()
            queue._states = await js.key_value(names.states)
        return queue

    async def make_stores(self) -> None:
        """Create the stores that are missing: at the start, and when the server has lost them. Raises Unavailable."""
        names, kept = self.names, self.retention
        with broker_errors():
            for config in (
                queue_config(names, self._max_pending),
                callbacks_config(names, kept),
                bucket_config(names.states, max_age_s=kept.jobs_s, max_bytes=kept.jobs_bytes),
            ):
                await make_stream(self._js, config)
            await self._images.open(max_age_s=kept.images_s)
            # A job may wait for as long as its state is kept, and then needs its images.
            await self.inputs.open(max_age_s=kept.jobs_s)
            for make in self.more_stores:
                await make()

    @property
    def states_stream(self) -> str:
        """The stream of the bucket of states."""
        return f"KV_{self.names.states}"

    # -- for gateways ------------------------------------------------------------------------------------

    async def submit(self, job: Job) -> JobState:
        """Queue a job. When this returns, the broker has it on disk.

        If the job id was submitted before, returns the state of that job. Raises QueueFull, BodyTooLarge and
        Unavailable: then the job is not queued, unless the answer of the server was lost.
        """
        if not self.nc.is_connected:
            raise Unavailable("the connection to the NATS server is down; reconnecting")
        self.check_size(job)
        state = JobState.queued(job)
        data = state.model_dump_json().encode()
        headers: dict[str, str] = {Header.MSG_ID: job.job_id}
        # Both go out in one write, so the state exists before a worker can look for it.
        ack, revision = await asyncio.gather(
            self._js.publish(subject_of(self.names, job), job.model_dump_json().encode(), headers=headers),
            self._states.update(job.job_id, data, last=0),
            return_exceptions=True,
        )
        try:
            if isinstance(ack, BaseException):
                if isinstance(ack, APIError) and isinstance(revision, int):  # Refused: there is no such job.
                    with contextlib.suppress(*BROKER_ERRORS):
                        await self._states.delete(job.job_id, last=revision)
                raise ack
        except APIError as error:
            if is_at_its_bound(error):
                raise QueueFull("the queue is full; try again when a job has finished") from error
            if error.err_code in NO_SPACE_ERRORS:
                raise StorageFull(
                    f"the NATS server has no space for the job ({error.description}): free space on its disk"
                ) from error
            raise Unavailable(f"the NATS server refused the job: {error.description}") from error
        except NoStreamResponseError as error:
            await self.make_stores()
            raise Unavailable("the NATS server had lost the queue, which was made anew; try again") from error
        except BROKER_ERRORS as error:
            raise Unavailable(f"the NATS server did not take the job: {error or type(error).__name__}") from error
        if ack.duplicate:
            with contextlib.suppress(UnknownJob):
                return await self.state(job.job_id)
        logs.bind(job_id=job.job_id)
        log_transition(state)
        if self.accepted:
            self.accepted(state)
        if isinstance(revision, BaseException):
            # The state exists, perhaps from an attempt whose answer was lost; or a worker will write it.
            try:
                try:
                    return await self.state(job.job_id)
                except UnknownJob:
                    with broker_errors():
                        revision = await self._states.create(job.job_id, data)
            except Unavailable as error:
                # The job is queued: an error would make the caller send it again.
                log.warning("the state of an accepted job is not written yet: %s", error)
                return state
        if self.noted:
            self.noted(state, revision)
        return state

    def check_size(self, job: Job) -> None:
        """Raise BodyTooLarge if the server would refuse the job, or a state that it can reach."""
        sizes.check_fits(job, {Header.MSG_ID: job.job_id}, self.nc.max_payload)

    async def state(self, job_id: str) -> JobState:
        """The current state of a job. Raises UnknownJob, UnreadableRecord and Unavailable."""
        return (await self.stored_state(job_id)).state

    async def stored_state(self, job_id: str) -> StoredState:
        """The current state of a job with its revision. Raises UnknownJob, UnreadableRecord and Unavailable."""
        with broker_errors():
            try:
                entry = await self._states.get(job_id)
            except KeyNotFoundError as error:
                raise UnknownJob(
                    f"no job has the id {job_id!r}, or it is older than {span(self.retention.jobs_s)}", field="job_id"
                ) from error
        assert entry.value is not None
        assert entry.revision is not None
        try:
            return StoredState(read_answer(JobState, entry.value), entry.revision)
        except ValidationError as error:
            log.warning("job %s has a state that cannot be read: %s", job_id, logs.what_failed(error))
            raise UnreadableRecord(
                f"the record of job {job_id} cannot be read: another version wrote it, or it is damaged; "
                "update this process",
                revision=entry.revision,
            ) from error

    @contextlib.contextmanager
    def listen(self, job_id: str, *, previews: bool = False, ends_only: bool = False) -> Iterator[Mailbox]:
        """Events of one job, from now on. Listen before the job is submitted, to miss none.

        Workers send previews only while someone listens with `previews`.
        """
        events = Mailbox(previews=previews, ends_only=ends_only)
        self._listeners.setdefault(job_id, []).append(events)
        watching = asyncio.create_task(self._watch(job_id)) if previews else None
        try:
            yield events
        finally:
            if watching is not None:
                watching.cancel()
            self._listeners[job_id].remove(events)
            if not self._listeners[job_id]:
                del self._listeners[job_id]

    async def _watch(self, job_id: str) -> None:
        """Keep asking for the previews of a job: its worker may change."""
        while True:
            with contextlib.suppress(*BROKER_ERRORS):
                await self.nc.publish(f"{self.names.watch}.{job_id}")
            await asyncio.sleep(WATCH_S)

    async def start_listening(self) -> None:
        """Subscribe to the events of all jobs. One subscription serves every listener of this process."""
        await self.nc.subscribe(f"{self.names.events}.*", cb=self._on_event)

    async def _on_event(self, msg: Msg) -> None:
        job_id = msg.subject.rpartition(".")[2]
        if msg.data.startswith(PROGRESS_START):
            self._progress[job_id] = msg.data
            self._progress.move_to_end(job_id)
            if len(self._progress) > MAX_PROGRESS:
                self._progress.popitem(last=False)
        ends = msg.data.startswith(FINAL_STARTS)
        if ends:
            self._progress.pop(job_id, None)
        listeners = [events for events in self._listeners.get(job_id, ()) if ends or not events.ends_only]
        if not listeners:
            return
        try:
            event = read_answer(JobEvent, msg.data)
        except ValidationError as error:  # Of another version. The end comes from the bucket.
            log.debug("an event of job %s cannot be read: %s", job_id, logs.what_failed(error))
            return
        for events in listeners:
            events.put(event)

    def ended(self, state: JobState) -> None:
        """Notify listeners of an end that the bucket shows, which is before the worker's own event."""
        for events in self._listeners.get(state.job_id, ()):
            events.put(JobEvent.ending(state))

    def last_progress_event(self, job_id: str) -> JobEvent | None:
        """The last progress event of a job; None if there was none, or it has been forgotten."""
        data = self._progress.get(job_id)
        with contextlib.suppress(ValidationError):  # Of another version.
            return read_answer(JobEvent, data) if data else None
        return None

    def last_progress(self, job_id: str) -> JobProgress | None:
        """The last progress of a job, as a record."""
        event = self.last_progress_event(job_id)
        return JobProgress.model_validate(event.model_dump(include=set(JobProgress.model_fields))) if event else None

    async def follow(self, job_id: str, events: Mailbox) -> AsyncIterator[JobEvent]:
        """Every event up to the final one, which comes even if the broker loses it: the state is polled too."""
        while True:
            try:
                event = await asyncio.wait_for(events.get(), STATE_POLL_S)
            except TimeoutError:
                try:
                    state = await self.state(job_id)
                # The broker is down, the job is not submitted yet, or its worker is of a newer version.
                except (Unavailable, UnknownJob, UnreadableRecord):
                    continue
                if not state.status.final:
                    continue
                event = JobEvent.ending(state)
            yield event
            if event.final:
                return

    async def image(self, image: ImageObject) -> bytes:
        """The bytes of an image. Raises ImageExpired if the retention has removed it, and Unavailable."""
        try:
            return await self._images.get(image)
        except ImageExpired as error:
            raise ImageExpired(
                f"the image {image.name} is no longer kept: images are kept for {span(self.retention.images_s)}, "
                f"and the oldest go when all take more than {self.retention.images_bytes / 1e9:.3g} GB; "
                "ask for it again with the same seed"
            ) from error

    async def call_back(self, state: JobState) -> None:
        """Queue the webhook of a job that has one. Repeated calls queue it once. Raises Unavailable."""
        if state.callback_url is None:
            return
        with broker_errors():
            await self._js.publish(
                self.names.callbacks, state.job_id.encode(), headers={Header.MSG_ID: f"callback-{state.job_id}"}
            )

    async def end_callback(self, job: Job) -> None:
        """Queue the webhook of a job that a worker is about to acknowledge: nobody else would do it after that."""
        if job.callback_url is not None:
            with contextlib.suppress(UnknownJob):
                await self.call_back(await self.state(job.job_id))

    # -- for workers -------------------------------------------------------------------------------------

    async def subscribe(self, closed: asyncio.Event | None = None) -> JobSubscription:
        """Subscribe to the queue. A delivery is repeated after ACK_WAIT_S without a sign of life.

        While `closed` is set, the subscription waits for no job.
        """
        with broker_errors():
            try:
                consumers = await make_consumers(self._js, self.names)
            except NotFoundError:
                log.warning("the NATS server has lost the queue; it is made anew")
                await self.make_stores()
                consumers = await make_consumers(self._js, self.names)
        return JobSubscription(self.nc, self.names.stream, consumers, self._turns, closed)

    async def begin(self, job: Job) -> StoredState:
        """The state of a job, created if the gateway has not written it yet. Raises Unavailable."""
        with contextlib.suppress(UnknownJob):
            return await self.stored_state(job.job_id)
        state = JobState.queued(job)
        with broker_errors():
            try:
                return StoredState(state, await self._states.create(job.job_id, state.model_dump_json().encode()))
            except KeyWrongLastSequenceError:
                return await self.stored_state(job.job_id)

    async def advance(self, stored: StoredState) -> StoredState | None:
        """Write the next state of a job unless it has changed since `stored.revision`; None if it has.

        Returns what was written: of a state that is too large, what `sizes.bounded` leaves. Raises Unavailable.
        """
        written = await self.amend(StoredState(sizes.bounded(stored.state, self.nc.max_payload), stored.revision))
        if written is not None:
            log_transition(written.state)
        return written

    async def amend(self, stored: StoredState) -> StoredState | None:
        """`advance` for a change that is no step in the life of the job. Raises BodyTooLarge if it does not fit."""
        state = stored.state
        with broker_errors():
            try:
                revision = await self._states.update(
                    state.job_id, state.model_dump_json().encode(), last=stored.revision
                )
            except KeyWrongLastSequenceError:
                return None
        return StoredState(state, revision)

    async def announce(self, state: JobState) -> None:
        """Publish the end of a job: its last event and its result event."""
        await self.publish(JobEvent.ending(state))
        result = JobResultEvent.of(state).model_dump_json().encode()
        await self._publish_hint(self.names.result, result)

    async def publish(self, event: JobEvent) -> None:
        """Publish an event to everyone who listens now. It is not repeated."""
        data = event.model_dump_json(exclude_none=True).encode()
        await self._publish_hint(f"{self.names.events}.{event.job_id}", data)

    async def _publish_hint(self, subject: str, data: bytes) -> None:
        """Publish what readers can do without: a preview, or a node's title, may be of any size."""
        try:
            await self.nc.publish(subject, data)
        except MessageTooLarge as error:
            log.warning("not sent on %s: %s", subject, error)

    async def store_image(self, job_id: str, index: int, image_format: FileFormat, data: bytes) -> ImageObject:
        """Store an image. Raises StorageFull and Unavailable."""
        return await self._images.put(f"{job_id}/{index}.{EXTENSIONS[image_format]}", data)


def log_transition(state: JobState) -> None:
    """Log a state change of a job: one line, from the process that caused it."""
    failed = state.status is JobStatus.FAILED
    trace = tracing.Trace.read(state.traceparent)
    facts = logs.fields(
        job_id=state.job_id,
        status=state.status.value,
        kind=state.kind.value,
        mode=state.mode,
        model=state.model,
        **({"cancel_requested": True} if state.cancel_requested and not state.status.final else {}),
        **({"queue_ms": round(state.queue_time_ms, 1)} if state.started_at else {}),
        **({"run_ms": round(state.generation_time_ms, 1)} if state.finished_at else {}),
        **({"code": state.error.code} if state.error else {}),
        **({"trace_id": trace.trace_id} if trace else {}),
    )
    log.log(logging.WARNING if failed else logging.INFO, "job %s", state.status.value, extra=facts)
    if failed and state.error:
        with logs.about(job_id=state.job_id):
            logs.keep_private(state.parameters)
            log.warning("cause: %s", state.error.message)
