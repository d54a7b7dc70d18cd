"""The wire format, and the only place where it is written.

Every door (REST, NATS, client, command line) reads and writes these models, `/openapi.json` is made from them, and the
worker and the gateway speak them to each other over NATS. Times are seconds since the epoch unless a name ends in
`_ms`. Sizes are pixels unless a name ends in `_bytes`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

DEFAULT_MODE = "text-to-image"
MAX_PROMPT_CHARS = 10_000
MAX_SEED = 2**53 - 1
"""The largest integer that JSON numbers, JavaScript and the graph editor all carry exactly."""
JOB_ID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
"""A lowercase UUID: it is also ComfyUI's prompt id, and newer releases refuse any other form."""

JobId = Annotated[str, Field(pattern=JOB_ID_PATTERN)]
ImageFormat = Literal["png", "jpeg", "webp"]
EXTENSIONS: dict[ImageFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
"""Of file names."""


class WireModel(BaseModel):
    """Base of what we send: built by us, so unknown fields are a mistake of ours.

    A field that may be null has null as its default, where events carry it: they leave nulls out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageGenRequest(BaseModel):
    """What to draw. Only `prompt` is required: a null field takes the model's own default.

    A mode may take further parameters; they are top-level fields beside these, named as in the mode's graph.
    """

    # Strict: "512" for 512 is a caller's bug that would otherwise surface later and elsewhere.
    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS, description="What the picture shows.")
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
    num_images: int = Field(default=1, ge=1, le=64, description="How many pictures.")
    output_format: ImageFormat = Field(default="png", description="The encoding of the pictures.")
    mode: str = Field(default=DEFAULT_MODE, max_length=200, description="The saved graph that runs.")
    job_id: JobId | None = Field(
        default=None,
        description="A UUID of the caller's choice. The same id again returns the same job instead of a second one.",
    )


class ImageObject(WireModel):
    """Where a picture lies in the NATS object store. `digest` is the store's own: `SHA-256=` + base64url."""

    bucket: str
    name: str
    size: int
    digest: str


class ImageGenResponse(WireModel):
    """The pictures and what they were made with. `seed` is that of the first picture; picture i has seed + i."""

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
    image_format: ImageFormat
    image_bytes_b64: str | None = Field(description="The first picture, base64. Null where `image_object` is given.")
    images: list[str] = Field(description="All pictures, base64. Empty where `image_objects` is given.")
    image_object: ImageObject | None = Field(
        default=None, description="NATS only: the first picture, when the reply would exceed the server's max_payload."
    )
    image_objects: list[ImageObject] = Field(default_factory=list)
    queue_time_ms: float
    generation_time_ms: float
    warnings: list[str] = Field(default_factory=list, description="What was asked for and had no effect, and why.")


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


class PackModel(BaseModel):
    """Base of what the node pack tells us: a newer pack may say more than we know."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class IntegerLimit(PackModel):
    """Inclusive bounds; `choices`, where given, are the only values allowed."""

    min: int
    max: int
    multiple_of: int = 1
    choices: list[int] | None = None


class NumberLimit(PackModel):
    """Inclusive bounds."""

    min: float
    max: float


class ModelDefaults(PackModel):
    """What a null field of a request becomes."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float


class ModelLimits(PackModel):
    """What the model can do."""

    width: IntegerLimit
    height: IntegerLimit
    num_inference_steps: IntegerLimit
    guidance_scale: NumberLimit
    num_images: IntegerLimit
    negative_prompt: bool


class ModelInfo(PackModel):
    """One model. `status`: its weights are here, can be fetched on first use, or cannot be had (`reason` says why)."""

    name: str
    title: str
    family: str
    license: str
    commercial_use: bool
    status: Literal["ready", "downloadable", "missing"]
    reason: str | None = None
    loaded: bool
    source: str | None = None
    download_bytes: int | None = None
    defaults: ModelDefaults
    limits: ModelLimits


class ModelInfoResponse(PackModel):
    """The models, and the machine that runs them. `current_model` is what ComfyUI really holds now."""

    current_model: str | None
    default_model: str
    device: str
    device_name: str
    cuda_available: bool
    dtype: str
    offload: str
    vram_total_bytes: int | None
    vram_free_bytes: int | None
    models: list[ModelInfo]

    def find(self, name: str) -> ModelInfo | None:
        """The model of that name."""
        return next((model for model in self.models if model.name == name), None)


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


class JobState(WireModel):
    """What is known of a job."""

    job_id: str
    kind: JobKind
    mode: str
    model: str | None = None
    status: JobStatus
    parameters: dict[str, JsonValue]
    submitted_at: float
    started_at: float | None = None
    finished_at: float | None = None
    image_format: ImageFormat | None = None
    images: list[ImageObject] = Field(default_factory=list)
    loaded: dict[str, JsonValue] | None = Field(default=None, description="What a load job reports.")
    warnings: list[str] = Field(default_factory=list)
    error: ErrorBody | None = None

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

    `state` comes first and holds the whole `JobState`; `progress` counts `value` of `maximum` in the node `phase`
    (a sampler counts its steps); `preview` holds a small JPEG or PNG; the rest are states that the job reached, the
    final ones with the whole `state` again.
    """

    type: Literal["state", "queued", "started", "progress", "preview", "done", "failed", "cancelled"]
    job_id: str
    phase: str | None = None
    value: float | None = None
    maximum: float | None = None
    image_b64: str | None = None
    mime: str | None = None
    state: JobState | None = None

    @property
    def final(self) -> bool:
        """Whether no event follows this one."""
        return self.state is not None and self.state.status.final


class JobResultEvent(WireModel):
    """What `ai.vision.imagegen.result` carries after every job, whichever door it came by. Pictures by reference."""

    job_id: str
    kind: JobKind
    status: JobStatus
    mode: str
    model: str | None
    parameters: dict[str, JsonValue]
    image_format: ImageFormat | None
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
