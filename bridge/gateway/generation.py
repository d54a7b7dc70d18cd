"""What every API does with a request: make a job of it, queue the job, wait for its end, and build the answer."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import time
from dataclasses import dataclass, replace
from typing import TypeGuard
from uuid import uuid4

from bridge import logs, tracing
from bridge.broker.jobs import JobQueue
from bridge.broker.mailbox import Mailbox
from bridge.contract import (
    JOB_ID_PATTERN,
    BodyTooLarge,
    BridgeError,
    CancelAnswer,
    ImageGenResponse,
    InvalidRequest,
    Job,
    JobCancelled,
    JobKind,
    JobState,
    JobStatus,
    LoadModelResponse,
    QueueFull,
    StorageFull,
    TimedOut,
    Unavailable,
    UnknownJob,
    WorkerError,
)
from bridge.disk import Disks
from bridge.gateway import cancellation
from bridge.gateway.idempotency import Claim, IdempotencyKeys
from bridge.gateway.models import Models
from bridge.gateway.offers import Offers
from bridge.gateway.outside.callback_address import CallbackPolicy
from bridge.gateway.outside.image_urls import ImageUrls
from bridge.gateway.requests import Body, Limits
from bridge.gateway.resolve import find_mode, form_values, make_job, make_load_job
from bridge.gateway.s3 import Exports
from bridge.gateway.uploads import Uploads
from bridge.modes.library import ModeLibrary


@dataclass(frozen=True)
class Accepted:
    """What became of a request: a new job, not queued yet, or the state of a job that was queued before."""

    job: Job | JobState
    replayed: bool = False
    """An earlier request with the same Idempotency-Key made the job."""
    key: str | None = None
    """The Idempotency-Key, which is free again if the queue refuses the job."""

    @property
    def job_id(self) -> str:
        return self.job.job_id


class Generation:
    """The requests of one gateway, whichever API they came by."""

    def __init__(
        self,
        queue: JobQueue,
        modes: ModeLibrary,
        keys: IdempotencyKeys,
        *,
        timeout_s: float,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        callbacks: CallbackPolicy = CallbackPolicy(),  # noqa: B008 - frozen
        disks: Disks = Disks(),  # noqa: B008 - frozen
        image_urls: ImageUrls | None = None,
        exports: Exports | None = None,
    ) -> None:
        self.queue = queue
        self.modes = modes
        self.limits = limits
        self.models = Models(queue)
        self.offers = Offers(queue)
        self.exports = exports or Exports(queue, None)
        self._keys = keys
        urls = image_urls or ImageUrls(max_bytes=limits.image.max_bytes)
        self._uploads = Uploads(queue, limits, urls, self.exports.image)
        self.decoder = self._uploads.decoder
        self._callbacks = callbacks
        self._timeout_s = timeout_s
        self._disks = disks

    def check_disk(self) -> None:
        """Raise StorageFull if a disk that jobs fill is nearly full: a new job would fail late, and others with it."""
        if problem := self._disks.shortage():
            raise StorageFull(f"no new jobs are accepted: {problem}")

    async def accept(self, body: Body, key: str | None = None, *, endpoint: str = "") -> Accepted:
        """Check a request and store its images. The same `key` with the same request gives the same job.

        `endpoint` is the path or subject that the request came by: a key stands for one request to one endpoint.
        Raises InvalidRequest, UnknownMode, BrokenMode, UnknownModel, BodyTooLarge, IdempotencyMismatch, Unavailable.
        """
        given = body.values.get("job_id")
        if key is None or not (given is None or _is_job_id(given)):  # A bad id is refused before it takes the key.
            return Accepted(await self._job(body))
        claim = Claim(job_id=given if isinstance(given, str) else str(uuid4()), fingerprint=body.fingerprint(endpoint))
        first = await self._keys.claim(key, claim)
        replayed = first != claim
        if replayed or given is not None:
            try:
                return Accepted(await self.queue.state(first.job_id), replayed)
            except UnknownJob:
                pass  # The request that claimed the key has not queued its job yet.
        try:
            job = await self._job(replace(body, values={**body.values, "job_id": first.job_id}))
            return Accepted(job, replayed, key)
        except BridgeError:
            await self._keys.release(key)
            raise

    async def submit(self, accepted: Accepted) -> JobState:
        """Queue a job, unless it was queued before. When this returns, the job is on the broker's disk.

        Raises QueueFull, BodyTooLarge and Unavailable.
        """
        if isinstance(accepted.job, JobState):
            return accepted.job
        try:
            return await self.queue.submit(accepted.job)
        except (QueueFull, BodyTooLarge):  # Of any other error it is not known whether the job was queued.
            if accepted.key is not None:
                with contextlib.suppress(Unavailable):
                    await self._keys.release(accepted.key)
            raise

    async def run(self, accepted: Accepted) -> JobState:
        """Queue a job, unless it was queued before, and wait for its end.

        Raises WorkerError, JobCancelled, TimedOut, QueueFull and Unavailable.
        """
        with self.queue.listen(accepted.job_id, ends_only=True) as events:
            state = await self.submit(accepted)
            if not state.status.final:
                state = await self._wait(accepted.job_id, events)
        if state.status is JobStatus.FAILED and state.error:
            raise WorkerError(state.error)
        if state.status is JobStatus.CANCELLED:
            raise JobCancelled(state.error.message if state.error else f"job {state.job_id} was cancelled")
        return state

    async def load(self, model_name: str) -> LoadModelResponse:
        """Load a model and wait until it is on its device. Raises UnknownModel and what `run` raises."""
        self.check_disk()
        state = await self.run(Accepted(_traced(make_load_job(model_name, await self.models.recent(), time.time()))))
        return LoadModelResponse.model_validate({"job_id": state.job_id, **(state.loaded or {})})

    async def cancel(self, job_id: str) -> CancelAnswer:
        """Cancel a job that waits or runs. Raises UnknownJob and Unavailable."""
        return await cancellation.cancel(self.queue, job_id)

    async def response(self, state: JobState, *, inline: bool = True) -> ImageGenResponse:
        """The answer to a generate request. Without `inline` it names its images instead of carrying them.

        Raises InvalidRequest for a job that generates nothing, ImageExpired and Unavailable.
        """
        if state.kind is not JobKind.GENERATE:
            raise InvalidRequest(f"job_id {state.job_id} is that of a job that loads a model", field="job_id")
        state = await self.exports.ended(state)
        contents = await asyncio.gather(*(self.exports.image(image) for image in state.images)) if inline else []
        images = [base64.b64encode(content).decode() for content in contents]
        return ImageGenResponse.of(state, images, by_reference=not inline)

    async def _job(self, body: Body) -> Job:
        """The job that a request asks for, its images stored. It is not queued yet."""
        logs.keep_private(body.values)
        self.check_disk()
        mode = find_mode(body.values, self.modes)
        values = dict(form_values(body.values, mode) if body.is_form else body.values)
        given = values.get("job_id")
        job_id = given if _is_job_id(given) else str(uuid4())
        images, problems = await self._uploads.read(replace(body, values=values), mode)
        values |= {name: image.reference(job_id, name) for name, image in images.items()}
        if given is None:
            values["job_id"] = job_id
        bad = {problem.field for problem in problems}
        values = {name: value for name, value in values.items() if name not in bad}
        models = await self.models.recent()
        mode = await self.offers.fill(mode, values)
        job = make_job(values, self.modes, models, time.time(), problems, self.limits.request, mode)
        if job.callback_url is not None:
            await self._callbacks.check(job.callback_url)
        self.queue.check_size(job)
        await self._uploads.store(images, job_id)
        return _traced(job)

    async def _wait(self, job_id: str, events: Mailbox) -> JobState:
        try:
            async with asyncio.timeout(self._timeout_s):
                async for event in self.queue.follow(job_id, events):
                    if event.final and event.state:
                        return event.state
        except TimeoutError as error:
            raise TimedOut(
                f"job {job_id} is not done after {self._timeout_s:g} s; it goes on: ask GET /v1/jobs/{job_id}"
            ) from error
        raise AssertionError("the event stream ends with the job")


def _traced(job: Job) -> Job:
    """The job with the trace context of the request."""
    return job.model_copy(update=tracing.headers())  # The fields are named like the headers.


def _is_job_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and re.fullmatch(JOB_ID_PATTERN, value) is not None
