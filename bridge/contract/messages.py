"""The wire format, and the only place where it is written.

Every door (REST, NATS, client, command line) reads and writes these models, `/openapi.json` is made from them, and the
worker and the gateway speak them to each other over NATS. Times are seconds since the epoch unless a name ends in
`_ms`. Sizes are pixels unless a name ends in `_bytes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from bridge.contract.files import ImageObject, ResultFile, WireModel
from bridge.contract.formats import (  # noqa: F401 - given on
    EXTENSIONS,
    IMAGE_FORMATS,
    FileFormat,
    ImageFormat,
    format_of,
)
from bridge.contract.models import (  # noqa: F401 - given on
    AdapterInfo,
    ComponentMemory,
    FoundFile,
    IntegerLimit,
    MissingFile,
    ModelDefaults,
    ModelDownload,
    ModelFiles,
    ModelInfo,
    ModelInfoResponse,
    ModelLimits,
    NumberLimit,
    PackModel,
)

DEFAULT_MODE = "text-to-image"
MAX_PROMPT_CHARS = 10_000
MAX_SEED = 2**53 - 1
"""The largest integer that JSON numbers, JavaScript and the graph editor all carry exactly."""
JOB_ID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
"""A lowercase UUID: it is also ComfyUI's prompt id, and newer releases refuse any other form."""

MAX_URL_CHARS = 2000

JobId = Annotated[str, Field(pattern=JOB_ID_PATTERN)]


class ImageGenRequest(BaseModel):
    """What to draw. Only `prompt` is required: a null field takes the model's own default.

    A mode may take further parameters; they are top-level fields beside these, named as in the mode's graph.
    """

    # Strict: "512" for 512 is a caller's bug that would otherwise surface later and elsewhere.
    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS, description="What the image shows.")
    negative_prompt: str | None = Field(
        default=None, max_length=MAX_PROMPT_CHARS, description="What it must not show, on models that can use it."
    )
    width: int | None = Field(default=None, ge=16, le=16384, description="Pixels; a multiple of 16. Null: the model's.")
    height: int | None = Field(
        default=None, ge=16, le=16384, description="Pixels; a multiple of 16. Null: the model's."
    )
    num_inference_steps: int | None = Field(default=None, ge=1, le=1000, description="Null: the model's default.")
    guidance_scale: float | None = Field(default=None, ge=0, le=100, description="Null: the model's default.")
    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="Image i is drawn with seed + i. Null: random, and returned."
    )
    model: str | None = Field(
        default=None, max_length=200, description="A name from /v1/model-info. Null: the default."
    )
    num_images: int = Field(default=1, ge=1, le=64, description="How many images.")
    output_format: ImageFormat = Field(default="png", description="The encoding of the images.")
    mode: str = Field(default=DEFAULT_MODE, max_length=200, description="The saved graph that runs.")
    job_id: JobId | None = Field(
        default=None,
        description="A UUID of the caller's choice. The same id again returns the same job instead of a second one.",
    )
    callback_url: str | None = Field(
        default=None,
        max_length=MAX_URL_CHARS,
        description="Where the end of the job is told: a signed POST, repeated until it is answered with 2xx.",
    )
    cancel_on_disconnect: bool = Field(
        default=False, description="Cancel the job if the caller hangs up before it ends. For requests that wait."
    )


class ImageGenResponse(WireModel):
    """The images and what they were made with. `seed` is that of the first image; image i has seed + i."""

    job_id: str
    mode: str
    model: str | None
    prompt: str
    negative_prompt: str | None
    width: int | None
    height: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    seed: int | None
    image_format: FileFormat = Field(description="Of the first image; of the first file where none is an image.")
    image_bytes_b64: str | None = Field(
        description="The first image, or the first file where none is an image; base64. Null where `image_object` "
        "is given."
    )
    images: list[str] = Field(
        description="All images (or other files: see `files`), base64. Empty where `image_objects` is given."
    )
    files: list[ResultFile] = Field(default_factory=list, description="What each of the images is, in their order.")
    image_object: ImageObject | None = Field(
        default=None, description="NATS only: the first image, when the reply would exceed the server's max_payload."
    )
    image_objects: list[ImageObject] = Field(default_factory=list)
    queue_time_ms: float
    generation_time_ms: float
    warnings: list[str] = Field(default_factory=list, description="What was asked for and had no effect, and why.")

    @classmethod
    def of(cls, state: JobState, images: Sequence[str] = (), *, by_reference: bool = False) -> ImageGenResponse:
        """The answer about a job that is done; `images` are its images in base64, unless they go by reference."""
        given = state.parameters
        first = next((index for index, image in enumerate(state.images) if format_of(image.name) in IMAGE_FORMATS), 0)
        return cls.model_validate(
            {
                **state.model_dump(include=set(cls.model_fields) & set(JobState.model_fields) - {"images"}),
                **{name: given.get(name) for name in ECHOED},
                "prompt": given.get("prompt", ""),
                "image_bytes_b64": next(iter(images[first:]), None),
                "images": list(images),
                "image_object": next(iter(state.images[first:]), None) if by_reference else None,
                "image_objects": state.images if by_reference else [],
                "files": [ResultFile.of(image) for image in state.images],
                "queue_time_ms": state.queue_time_ms,
                "generation_time_ms": state.generation_time_ms,
            }
        )


ECHOED = ("negative_prompt", "width", "height", "num_inference_steps", "guidance_scale", "seed")
"""Parameters that the response repeats with the values that were used."""


class ErrorDetail(WireModel):
    """One bad field."""

    field: str | None = None
    message: str


class ErrorBody(WireModel):
    """What went wrong and what to do. `field` is the first bad field; `details` holds all of them."""

    code: str
    message: str
    field: str | None = None
    details: list[ErrorDetail] = Field(default_factory=list)


class ErrorEnvelope(WireModel):
    """Every error of every door."""

    error: ErrorBody


class LoadModelResponse(WireModel):
    """A model that now lies where it runs. `load_time_ms` is 0 to a few ms for one that was loaded already."""

    job_id: str
    model: str
    load_time_ms: float
    device: str
    dtype: str
    offload: str


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
        """Whether nothing more will happen to the job."""
        return self in (JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED)


class Job(WireModel):
    """A request with nothing left open: what the queue holds. `parameters` are the values of the mode's graph."""

    job_id: str
    kind: JobKind
    mode: str
    model: str | None = None
    parameters: dict[str, JsonValue]
    submitted_at: float
    warnings: list[str] = Field(default_factory=list)
    callback_url: str | None = None


class JobProgress(WireModel):
    """How far a running job is: `value` of `maximum` in `phase` (see `JobEvent`)."""

    phase: str | None = None
    value: float | None = None
    maximum: float | None = None
    seconds_left: float | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    bytes_per_second: float | None = None


class JobState(WireModel):
    """What is known of a job.

    `position`, `wait_seconds` and `progress` are of the moment: answers have them, the stored state does not.
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
    loaded: dict[str, JsonValue] | None = Field(default=None, description="What a load job reports.")
    warnings: list[str] = Field(default_factory=list)
    error: ErrorBody | None = None
    callback_url: str | None = None
    cancel_requested: bool = Field(default=False, description="It was to be cancelled while it ran.")
    attempts: int = Field(default=0, description="How often a run of it was begun; more than once after a crash.")
    worker: str | None = Field(default=None, description="The worker that ran it last.")
    position: int | None = Field(default=None, description="Waiting jobs ahead of a queued one; 0: it is the next.")
    wait_seconds: float | None = Field(
        default=None, description="Until a queued job starts, from how long its kind took before. Null: not known."
    )
    progress: JobProgress | None = Field(default=None, description="Of a running job.")

    @classmethod
    def queued(cls, job: Job) -> JobState:
        """The state of a job that was just accepted."""
        return cls(status=JobStatus.QUEUED, **job.model_dump())

    def moved(self, status: JobStatus, **changes: Any) -> JobState:
        """The same job in another state."""
        return self.model_copy(update={"status": status, **changes})

    @property
    def queue_time_ms(self) -> float:
        """Milliseconds between acceptance and start; 0 while it waits."""
        return max(0.0, (self.started_at or self.submitted_at) - self.submitted_at) * 1000

    @property
    def generation_time_ms(self) -> float:
        """Milliseconds between start and end; 0 until then."""
        return max(0.0, (self.finished_at or 0.0) - (self.started_at or self.finished_at or 0.0)) * 1000


class JobEvent(WireModel):
    """One thing that happened to a job, as the event stream tells it.

    `state` comes first and holds the whole `JobState`. `queued` says how many wait ahead (`position`) and for how long
    (`wait_seconds`, absent if not known). `progress` counts `value` of `maximum` in `phase`: `download` and `load`
    count bytes, `sample` counts steps, any other node is called by its title; `node` is that title. `preview` holds a
    small JPEG or PNG. The rest are states that the job reached, the final ones with the whole `state` again.
    """

    type: Literal["state", "queued", "started", "progress", "preview", "done", "failed", "cancelled"]
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

    @property
    def final(self) -> bool:
        """Whether no event follows this one."""
        return self.state is not None and self.state.status.final


class JobResultEvent(WireModel):
    """What `ai.vision.imagegen.result` carries after every job, whichever door it came by. Images by reference."""

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
        """The event of a job that ended."""
        return cls(
            **state.model_dump(include=set(cls.model_fields) & set(JobState.model_fields)),
            image_objects=state.images,
            queue_time_ms=state.queue_time_ms,
            generation_time_ms=state.generation_time_ms,
        )


class WebhookBody(JobResultEvent):
    """What is posted to a job's `callback_url`. `image_urls` are paths on the service."""

    image_urls: list[str]

    @classmethod
    def of(cls, state: JobState) -> WebhookBody:
        """The call about a job that ended."""
        urls = [f"/v1/jobs/{state.job_id}/images/{index}" for index in range(len(state.images))]
        return cls(**dict(JobResultEvent.of(state)), image_urls=urls)


class CancelOutcome(StrEnum):
    """What a cancellation did."""

    DEQUEUED = "dequeued"  # it waited, and will not run
    INTERRUPTED = "interrupted"  # it ran, and was stopped
    ALREADY_ENDED = "already_ended"  # nothing: it was done, failed or cancelled before
    RECORDED = "recorded"  # it runs and its worker is silent: it ends as soon as a worker has it in hand


class CancelAnswer(JobState):
    """The job after a cancellation, and what the cancellation did."""

    outcome: CancelOutcome
    message: str


class JobPage(WireModel):
    """Jobs, newest first. `next_cursor` continues the list; null: there are no more."""

    jobs: list[JobState]
    next_cursor: str | None = None


class ModeSummary(WireModel):
    """One saved graph. `error` says why it cannot be used; the others work on."""

    name: str
    title: str
    description: str
    parameters: list[str]
    images: list[str] = Field(description="Those of the parameters that are images.")
    files: list[str] = Field(default_factory=list, description="Those that are other files.")
    error: ErrorBody | None = None


class ModeList(WireModel):
    """The saved graphs. `modes` are the names of all, broken ones included."""

    modes: list[str]
    details: list[ModeSummary]
