"""Requests: what callers send."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from bridge.contract.files import ImageFormat
from bridge.contract.jobs import Priority
from bridge.contract.wire import JobId, WireModel

DEFAULT_MODE = "text-to-image"
MAX_PROMPT_CHARS = 10_000
MAX_SEED = 2**53 - 1
"""The largest integer that JSON numbers, JavaScript and the graph editor all carry exactly."""
MAX_URL_CHARS = 2000


class ImageGenRequest(BaseModel):
    """What to generate. Only `prompt` is required; a null field takes the model's default.

    A mode may take more parameters. They are top-level fields too, named as in the mode's graph.
    """

    # Strict: "512" for 512 is a caller's mistake, which would otherwise surface later and elsewhere.
    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS, description="What the image shows.")
    negative_prompt: str | None = Field(
        default=None, max_length=MAX_PROMPT_CHARS, description="What it must not show, for models that support it."
    )
    width: int | None = Field(
        default=None, ge=16, le=16384, description="Pixels; a multiple of 16. Null: the model's default."
    )
    height: int | None = Field(
        default=None, ge=16, le=16384, description="Pixels; a multiple of 16. Null: the model's default."
    )
    num_inference_steps: int | None = Field(default=None, ge=1, le=1000, description="Null: the model's default.")
    guidance_scale: float | None = Field(default=None, ge=0, le=100, description="Null: the model's default.")
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="Image i uses seed + i. Null: a random seed, which the answer returns.",
    )
    model: str | None = Field(
        default=None, max_length=200, description="A name from /v1/model-info. Null: the default model."
    )
    num_images: int = Field(default=1, ge=1, le=64, description="How many images.")
    output_format: ImageFormat = Field(default="png", description="The encoding of the images.")
    mode: str = Field(default=DEFAULT_MODE, max_length=200, description="The saved graph to run.")
    job_id: JobId | None = Field(
        default=None,
        description="A UUID of the caller's choice. The same id again returns the same job, not a second one.",
    )
    callback_url: str | None = Field(
        default=None,
        max_length=MAX_URL_CHARS,
        description="A URL that receives a signed POST when the job ends, repeated until it answers with 2xx.",
    )
    priority: Priority | None = Field(
        default=None, description="Jobs of a higher priority are taken first. Null: normal."
    )
    cancel_on_disconnect: bool = Field(
        default=False, description="Cancel the job if the caller hangs up before it ends. For requests that wait."
    )


class CancelRequest(WireModel):
    """The body of a cancellation over NATS."""

    job_id: JobId
