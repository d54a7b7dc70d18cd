"""What every door does with a request: make a job of it, put it into the queue, wait for its end, build the answer."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from bridge import logs
from bridge.broker.fleet import ask_worker
from bridge.broker.jobs import JobQueue
from bridge.broker.mailbox import Mailbox
from bridge.contract.errors import (
    BodyTooLarge,
    BridgeError,
    GenerationFailed,
    ImageExpired,
    InvalidRequest,
    JobCancelled,
    TimedOut,
    Unavailable,
    UnknownJob,
)
from bridge.contract.messages import (
    JOB_ID_PATTERN,
    ErrorBody,
    ErrorDetail,
    ErrorEnvelope,
    ImageGenResponse,
    Job,
    JobKind,
    JobState,
    JobStatus,
    LoadModelResponse,
    ModelInfoResponse,
)
from bridge.gateway.callback_address import CallbackPolicy
from bridge.gateway.limits import RequestLimits
from bridge.gateway.offers import Offers
from bridge.gateway.resolve import find_mode, form_values, make_job, make_load_job
from bridge.modes import files_in, images_in
from bridge.modes.images_in import BadImage, ImageLimits, InputImage, JobImage
from bridge.modes.library import Mode, ModeLibrary
from bridge.modes.parameters import UPLOADS, Parameter, ParameterKind

MODEL_INFO_TIMEOUT_S = 10.0
KIND_NAMES = {ParameterKind.IMAGE: "image", ParameterKind.FILE: "file"}
"""What a caller is told that a parameter wants."""
MODEL_STALE_S = 10.0
"""So long the last answer serves while a newer one is asked for."""
MODEL_CACHE_S = 2.0
"""Requests that come together share one look at the models; what is loaded may be so old in their checks."""


class WorkerError(BridgeError):
    """An error that a worker answered with; its body is passed on as it came."""

    def __init__(self, body: ErrorBody) -> None:
        super().__init__(body.message, field=body.field, details=body.details)
        self.code = body.code
        self.status = Unavailable.status if body.code == Unavailable.code else 500
        self.retry_after_s = Unavailable.retry_after_s if self.status == Unavailable.status else None


@dataclass(frozen=True)
class Body:
    """A request as a door read it. `files` are images that came as bytes; `text_bytes` is the size of the rest."""

    values: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)
    text_bytes: int = 0
    is_form: bool = False
    """Its values are texts."""


@dataclass(frozen=True)
class Limits:
    """What one request may bring. `body_bytes` counts everything but its images and files."""

    body_bytes: int = 1024 * 1024
    file_bytes: int = 96 * 1024 * 1024
    image: ImageLimits = ImageLimits(max_bytes=32 * 1024 * 1024, max_pixels=64 * 1024 * 1024)
    request: RequestLimits = RequestLimits()


def wants_cancel_on_disconnect(body: Body | Mapping[str, Any]) -> bool:
    """Whether the job is to be cancelled when its caller hangs up. The field is checked with the others."""
    values = body.values if isinstance(body, Body) else body
    return values.get("cancel_on_disconnect") in (True, "true", "1")


def refuse_cancel_on_disconnect(body: Body | Mapping[str, Any]) -> None:
    """Raise InvalidRequest for a wish that this door cannot grant."""
    if wants_cancel_on_disconnect(body):
        message = "cancel_on_disconnect needs a connection that waits: leave it out, or use POST /v1/generate-image"
        raise InvalidRequest(message, field="cancel_on_disconnect")


class Generation:
    """The requests of one gateway."""

    def __init__(
        self,
        queue: JobQueue,
        modes: ModeLibrary,
        *,
        timeout_s: float,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        callbacks: CallbackPolicy = CallbackPolicy(),  # noqa: B008 - frozen
    ) -> None:
        self.queue = queue
        self.modes = modes
        self.limits = limits
        self.offers = Offers(queue)
        self._callbacks = callbacks
        self._timeout_s = timeout_s
        self._models: tuple[float, ModelInfoResponse] | None = None
        self._asking: asyncio.Future[ModelInfoResponse] | None = None

    async def model_info(self) -> ModelInfoResponse:
        """The models, as a worker has just read them from its ComfyUI. Raises Unavailable."""
        try:
            info = await self._ask_models()
        except BridgeError:
            self._models = None  # What was known is not to be trusted if nobody answers now.
            raise
        self._models = (time.monotonic(), info)
        return info

    async def _ask_models(self) -> ModelInfoResponse:
        answer = await ask_worker(self.queue.nc, self.queue.names.model_info, b"", MODEL_INFO_TIMEOUT_S)
        if answer.startswith(b'{"error"'):
            raise WorkerError(ErrorEnvelope.model_validate_json(answer).error)
        return ModelInfoResponse.model_validate_json(answer)

    async def _recent_models(self) -> ModelInfoResponse:
        known = self._models
        age_s = time.monotonic() - known[0] if known else MODEL_STALE_S
        if known and age_s < MODEL_CACHE_S:
            return known[1]
        # All that ask at once share one question, and one that has an answer of a few seconds ago waits for none.
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self.model_info())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        if known and age_s < MODEL_STALE_S:
            return known[1]
        return await asyncio.shield(self._asking)

    async def job(self, body: Body | Mapping[str, Any]) -> Job:
        """The job that a request asks for, its images stored. It is not queued yet.

        Raises what `make_job` raises, BodyTooLarge and Unavailable.
        """
        body = body if isinstance(body, Body) else Body(body)
        logs.keep_private(body.values)
        mode = find_mode(body.values, self.modes)
        values = dict(form_values(body.values, mode) if body.is_form else body.values)
        given = values.get("job_id")
        job_id = given if isinstance(given, str) and re.fullmatch(JOB_ID_PATTERN, given) else str(uuid4())
        images, problems = await self._images(replace(body, values=values), mode)
        values |= {name: image.reference(job_id, name) for name, image in images.items()}
        if given is None:
            values["job_id"] = job_id
        bad = {problem.field for problem in problems}
        values = {name: value for name, value in values.items() if name not in bad}
        models = await self._recent_models()
        mode = await self.offers.fill(mode, values)
        job = make_job(values, self.modes, models, time.time(), problems, self.limits.request, mode)
        if job.callback_url is not None:
            await self._callbacks.check(job.callback_url)
        for name, image in images.items():
            reference = images_in.stored(image.reference(job_id, name), self.queue.names.inputs)
            assert reference is not None
            await self.queue.inputs.put(reference.name, image.data)
        return job

    async def _images(self, body: Body, mode: Mode) -> tuple[dict[str, InputImage], list[ErrorDetail]]:
        """The images of a request by parameter, and what is wrong with those that cannot be used."""
        images: dict[str, InputImage] = {}
        problems: list[ErrorDetail] = []
        wanted = {name: parameter for name, parameter in mode.parameters.items() if parameter.kind in UPLOADS}
        text_bytes = body.text_bytes - sum(len(v) for name in wanted if isinstance(v := body.values.get(name), str))
        if text_bytes > self.limits.body_bytes:
            raise BodyTooLarge(
                f"the body has {text_bytes} bytes beside its images and files; at most {self.limits.body_bytes} are "
                "allowed"
            )
        for name in sorted(body.files.keys() - wanted.keys()):
            message = f"mode {mode.name} takes no image or file {name!r}; it takes {', '.join(wanted) or 'none'}"
            problems.append(ErrorDetail(field=name, message=message))
        for name, parameter in wanted.items():
            value = body.files.get(name, body.values.get(name))
            if value is None:
                continue
            try:
                data = value if isinstance(value, bytes) else await self._named(value, KIND_NAMES[parameter.kind])
                images[name] = await self._checked(data, parameter)
            except BadImage as error:
                problems.append(ErrorDetail(field=name, message=f"{name} {error}"))
        return images, problems

    async def _named(self, value: object, wanted: str) -> bytes:
        """What a text brings or names. Raises BadImage and Unavailable."""
        given = images_in.stored(value, self.queue.names.inputs)
        if given is not None:  # The parameters of an earlier job, sent again: they hold its digest, so it was theirs.
            try:
                return await self.queue.inputs.get(given)
            except UnknownJob as error:
                raise BadImage(f"{given.name} is not a {wanted} that is kept any more: send it again") from error
        data = images_in.read_text(value, wanted)
        return await self._image_of(data) if isinstance(data, JobImage) else data

    async def _checked(self, data: bytes, parameter: Parameter) -> InputImage:
        """What came for a parameter, if the parameter can take it. Raises BadImage."""
        if parameter.kind is ParameterKind.IMAGE:
            return await images_in.check(data, self.limits.image)
        return await files_in.check(data, self.limits.file_bytes, parameter.accept)

    async def _image_of(self, place: JobImage) -> bytes:
        """An image of an earlier job. Raises BadImage and Unavailable."""
        try:
            state = await self.queue.state(place.job_id)
            if place.index >= len(state.images):
                raise BadImage(
                    f"job:{place.job_id}/{place.index}: that job is {state.status.value} and has "
                    f"{len(state.images)} images"
                )
            return await self.queue.image(state.images[place.index])
        except (UnknownJob, ImageExpired) as error:
            raise BadImage(f"job:{place.job_id}/{place.index}: {error.message}") from error

    async def generate(self, body: Body | Mapping[str, Any]) -> JobState:
        """Run a request and wait for its images. For doors that cannot notice that the caller hangs up."""
        refuse_cancel_on_disconnect(body)
        return await self.run(await self.job(body))

    async def submit(self, body: Body | Mapping[str, Any]) -> JobState:
        """Queue a request; when this returns, the job is on disk."""
        refuse_cancel_on_disconnect(body)
        return await self.queue.submit(await self.job(body))

    async def load(self, model_name: str) -> LoadModelResponse:
        """Load a model and wait until it lies on its device."""
        state = await self.run(make_load_job(model_name, await self._recent_models(), time.time()))
        return LoadModelResponse.model_validate({"job_id": state.job_id, **(state.loaded or {})})

    async def run(self, job: Job) -> JobState:
        """Queue a job and wait for its end. Raises GenerationFailed, JobCancelled or TimedOut."""
        with self.queue.listen(job.job_id, ends_only=True) as events:
            return await self._end_of(await self.queue.submit(job), events)

    async def await_end(self, state: JobState) -> JobState:
        """Wait for the end of a job that was queued before. Raises what `run` raises."""
        with self.queue.listen(state.job_id, ends_only=True) as events:
            return await self._end_of(state, events)

    async def _end_of(self, state: JobState, events: Mailbox) -> JobState:
        if not state.status.final:
            state = await self._wait(state.job_id, events)
        if state.status is JobStatus.FAILED and state.error:
            raise GenerationFailed(state.error)
        if state.status is JobStatus.CANCELLED:
            raise JobCancelled(state.error.message if state.error else f"job {state.job_id} was cancelled")
        return state

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

    async def response(self, state: JobState, *, inline: bool = True) -> ImageGenResponse:
        """The answer to a generate request; without `inline` its images are named instead of carried.

        Raises InvalidRequest for a job that draws nothing, and what reading an image raises.
        """
        if state.kind is not JobKind.GENERATE:
            raise InvalidRequest(f"job_id {state.job_id} is that of a job that loads a model", field="job_id")
        contents = await asyncio.gather(*(self.queue.image(image) for image in state.images)) if inline else []
        images = [base64.b64encode(content).decode() for content in contents]
        return ImageGenResponse.of(state, images, by_reference=not inline)
