"""What every door does with a request: make a job of it, put it into the queue, wait for its end, build the answer."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from typing import Any

import nats.errors

from bridge.contract import (
    ErrorBody,
    ErrorEnvelope,
    ImageGenResponse,
    Job,
    JobState,
    JobStatus,
    LoadModelResponse,
    ModelInfoResponse,
)
from bridge.errors import BridgeError, GenerationFailed, JobCancelled, TimedOut, Unavailable
from bridge.jobs import BROKER_ERRORS, MODEL_INFO_SUBJECT, JobQueue
from bridge.modes import ModeLibrary
from bridge.resolve import make_job, make_load_job

MODEL_INFO_TIMEOUT_S = 10.0
MODEL_CACHE_S = 2.0
"""Requests that come together share one look at the models; what is loaded may be so old in their checks."""


class WorkerError(BridgeError):
    """An error that a worker answered with; its body is passed on as it came."""

    def __init__(self, body: ErrorBody) -> None:
        super().__init__(body.message, field=body.field, details=body.details)
        self.code = body.code
        self.status = Unavailable.status if body.code == Unavailable.code else 500
        self.retry_after_s = Unavailable.retry_after_s if self.status == Unavailable.status else None


class Generation:
    """The requests of one gateway."""

    def __init__(self, queue: JobQueue, modes: ModeLibrary, *, timeout_s: float) -> None:
        self.queue = queue
        self.modes = modes
        self._timeout_s = timeout_s
        self._models: tuple[float, ModelInfoResponse] | None = None

    async def model_info(self) -> ModelInfoResponse:
        """The models, as a worker has just read them from its ComfyUI. Raises Unavailable."""
        self._models = None  # What was known is not to be trusted if nobody answers now.
        try:
            msg = await self.queue.nc.request(MODEL_INFO_SUBJECT, b"", timeout=MODEL_INFO_TIMEOUT_S)
        except nats.errors.NoRespondersError as error:
            raise Unavailable("no worker is running yet; try again in a moment") from error
        except BROKER_ERRORS as error:
            raise Unavailable(f"no worker answered ({error or type(error).__name__}); try again") from error
        if msg.data.startswith(b'{"error"'):
            raise WorkerError(ErrorEnvelope.model_validate_json(msg.data).error)
        info = ModelInfoResponse.model_validate_json(msg.data)
        self._models = (time.monotonic(), info)
        return info

    async def _recent_models(self) -> ModelInfoResponse:
        if self._models and time.monotonic() - self._models[0] < MODEL_CACHE_S:
            return self._models[1]
        return await self.model_info()

    async def job(self, body: Mapping[str, Any]) -> Job:
        """The job that a request asks for. Raises what `make_job` raises, and Unavailable."""
        return make_job(body, self.modes, await self._recent_models(), time.time())

    async def generate(self, body: Mapping[str, Any]) -> JobState:
        """Run a request and wait for its pictures."""
        return await self._run(await self.job(body))

    async def load(self, model_name: str) -> LoadModelResponse:
        """Load a model and wait until it lies on its device."""
        state = await self._run(make_load_job(model_name, await self._recent_models(), time.time()))
        return LoadModelResponse.model_validate({"job_id": state.job_id, **(state.loaded or {})})

    async def _run(self, job: Job) -> JobState:
        """Queue a job and wait for its end. Raises GenerationFailed, JobCancelled or TimedOut."""
        with self.queue.listen(job.job_id) as events:
            state = await self.queue.submit(job)
            if not state.status.final:
                state = await self._wait(job.job_id, events)
        if state.status is JobStatus.FAILED and state.error:
            raise GenerationFailed(state.error)
        if state.status is JobStatus.CANCELLED:
            raise JobCancelled(state.error.message if state.error else f"job {job.job_id} was cancelled")
        return state

    async def _wait(self, job_id: str, events: asyncio.Queue) -> JobState:
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
        """The answer to a generate request; without `inline` its pictures are named instead of carried."""
        images = [base64.b64encode(await self.queue.image(image)).decode() for image in state.images] if inline else []
        given = state.parameters
        return ImageGenResponse.model_validate(
            {
                "job_id": state.job_id,
                "mode": state.mode,
                "model": state.model,
                "prompt": given.get("prompt", ""),
                "image_format": state.image_format,
                "image_bytes_b64": images[0] if images else None,
                "images": images,
                "image_object": None if inline else state.images[0],
                "image_objects": [] if inline else state.images,
                "queue_time_ms": state.queue_time_ms,
                "generation_time_ms": state.generation_time_ms,
                "warnings": state.warnings,
                **{name: given.get(name) for name in ECHOED},
            }
        )


ECHOED = ("negative_prompt", "width", "height", "num_inference_steps", "guidance_scale", "seed")
"""Parameters that the response repeats with the values that were used."""
