"""What happens to jobs: the events of one job, the result event of every job, and the webhook."""

from __future__ import annotations

from typing import Literal

from pydantic import JsonValue

from bridge.contract.envelope import ErrorBody
from bridge.contract.files import FileFormat, ImageObject
from bridge.contract.jobs import JobKind, JobState, JobStatus
from bridge.contract.wire import WireModel

EventType = Literal["unknown", "state", "queued", "started", "progress", "preview", "done", "failed", "cancelled"]
ENDINGS: dict[JobStatus, EventType] = {
    JobStatus.DONE: "done",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}
"""The type of the last event, by the state of the job."""


class JobEvent(WireModel):
    """One event of a job.

    `unknown` comes at once over a WebSocket if no job has that id yet; the stream waits for the job. Otherwise `state`
    comes first and holds the whole `JobState`. `queued` gives the number of jobs ahead (`position`) and the
    expected wait (`wait_seconds`, absent if not known). `progress` counts `value` of `maximum` in `phase`: `download`
    and `load` count bytes, `sample` counts steps, and any other phase is the title of a node; `node` is that title.
    `preview` holds a small JPEG or PNG. The other types are states that the job reached; the final ones hold the whole
    `state` again.
    """

    type: EventType
    job_id: str
    phase: str | None = None
    value: float | None = None
    maximum: float | None = None
    image_b64: str | None = None
    mime: str | None = None
    state: JobState | None = None
    node: str | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    bytes_per_second: float | None = None
    seconds_left: float | None = None
    position: int | None = None
    wait_seconds: float | None = None

    @classmethod
    def ending(cls, state: JobState) -> JobEvent:
        """The last event of a job that has ended."""
        return cls(type=ENDINGS[state.status], job_id=state.job_id, state=state)

    @property
    def final(self) -> bool:
        """Whether no event follows this one."""
        return self.state is not None and self.state.status.final


class JobResultEvent(WireModel):
    """The message on `ai.vision.imagegen.result` after every job, whichever API it came by. Images by reference."""

    job_id: str
    kind: JobKind
    status: JobStatus
    mode: str
    model: str | None
    parameters: dict[str, JsonValue]
    image_format: FileFormat | None
    image_objects: list[ImageObject]
    queue_time_ms: float
    generation_time_ms: float
    warnings: list[str]
    error: ErrorBody | None

    @classmethod
    def of(cls, state: JobState) -> JobResultEvent:
        """The event for a job that has ended."""
        return cls(
            **state.model_dump(include=set(cls.model_fields) & set(JobState.model_fields)),
            image_objects=state.images,
            queue_time_ms=state.queue_time_ms,
            generation_time_ms=state.generation_time_ms,
        )


class WebhookBody(JobResultEvent):
    """The webhook: what is posted to a job's `callback_url`. `image_urls` are paths on the service."""

    image_urls: list[str]

    @classmethod
    def of(cls, state: JobState) -> WebhookBody:
        """The webhook for a job that has ended."""
        urls = [f"/v1/jobs/{state.job_id}/images/{index}" for index in range(len(state.images))]
        return cls(**dict(JobResultEvent.of(state)), image_urls=urls)
