"""Jobs: what the queue holds, the states a job goes through, and answers about jobs.

Times are seconds since the epoch unless a name ends in `_ms`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, JsonValue

from bridge.contract.envelope import ErrorBody
from bridge.contract.files import FileFormat, ImageObject
from bridge.contract.wire import JobId, WireModel

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
"""In the order in which jobs are taken."""


class JobKind(StrEnum):
    """What a job does."""

    GENERATE = "generate"
    LOAD = "load"


class JobStatus(StrEnum):
    """The life of a job. The last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self in (JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED)


class Job(WireModel):
    """A fully resolved request, as the queue holds it. `parameters` are the values for the mode's graph."""

    job_id: JobId
    kind: JobKind
    mode: str
    model: str | None = None
    parameters: dict[str, JsonValue]
    submitted_at: float
    submitted_clock: str | None = None
    """The same moment as `bridge.clock.stamp`, for workers of the same machine."""
    warnings: list[str] = Field(default_factory=list)
    callback_url: str | None = None
    priority: Priority = "normal"
    traceparent: str | None = None
    tracestate: str | None = None


class JobProgress(WireModel):
    """The progress of a running job: `value` of `maximum` in `phase` (see `JobEvent`)."""

    phase: str | None = None
    value: float | None = None
    maximum: float | None = None
    seconds_left: float | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    bytes_per_second: float | None = None


class JobState(WireModel):
    """The state of a job.

    `position`, `wait_seconds`, `paused` and `progress` are filled in when a state is returned; the stored state does
    not have them.
    """

    job_id: str
    kind: JobKind
    mode: str
    model: str | None = None
    status: JobStatus
    parameters: dict[str, JsonValue]
    submitted_at: float
    started_at: float | None = None
    finished_at: float | None = None
    image_format: FileFormat | None = None
    images: list[ImageObject] = Field(default_factory=list)
    loaded: dict[str, JsonValue] | None = Field(default=None, description="The result of a job that loads a model.")
    warnings: list[str] = Field(default_factory=list)
    error: ErrorBody | None = None
    callback_url: str | None = None
    priority: Priority = "normal"
    traceparent: str | None = Field(default=None, description="The W3C trace context that the job belongs to.")
    tracestate: str | None = None
    cancel_requested: bool = Field(default=False, description="A caller cancelled the job while it ran.")
    attempts: int = Field(default=0, description="How often the job was started; more than once after a crash.")
    worker: str | None = Field(default=None, description="The worker that last ran the job.")
    position: int | None = Field(default=None, description="The number of jobs ahead of a queued job; 0: it is next.")
    wait_seconds: float | None = Field(
        default=None, description="Estimated seconds until a queued job starts, from earlier jobs. Null: not known."
    )
    paused: bool | None = Field(
        default=None, description="True: the queue is paused, and the job waits until it is resumed."
    )
    progress: JobProgress | None = Field(default=None, description="The progress of a running job.")

    @classmethod
    def queued(cls, job: Job) -> JobState:
        """The state of a job that has just been accepted."""
        return cls(status=JobStatus.QUEUED, **job.model_dump(exclude={"submitted_clock"}))

    def moved(self, status: JobStatus, **changes: Any) -> JobState:
        """The same job with another status."""
        return self.model_copy(update={"status": status, **changes})

    @property
    def queue_time_ms(self) -> float:
        """Milliseconds between acceptance and start; 0 while it waits."""
        return max(0.0, (self.started_at or self.submitted_at) - self.submitted_at) * 1000

    @property
    def generation_time_ms(self) -> float:
        """Milliseconds between start and end; 0 until then."""
        return max(0.0, (self.finished_at or 0.0) - (self.started_at or self.finished_at or 0.0)) * 1000


class CancelOutcome(StrEnum):
    """What a cancellation did."""

    DEQUEUED = "dequeued"  # it was waiting, and will not run
    INTERRUPTED = "interrupted"  # it was running, and was stopped
    ALREADY_ENDED = "already_ended"  # no change: it was done, failed or cancelled before
    RECORDED = "recorded"  # its worker does not answer: the job is cancelled as soon as a worker has it


class CancelAnswer(JobState):
    """The job after a cancellation, and the outcome of the cancellation."""

    outcome: CancelOutcome
    message: str


class JobPage(WireModel):
    """Jobs, newest first. `next_cursor` continues the list; null: this is the last page."""

    jobs: list[JobState]
    next_cursor: str | None = None
    unreadable: int = Field(
        default=0, description="Jobs of this page that are left out because this version cannot read their records."
    )
