"""Requests: what callers send."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bridge.contract.files import ImageFormat
from bridge.contract.jobs import Priority
from bridge.contract.texts import VisibleText, as_whole
from bridge.contract.wire import JobId, WireModel

DEFAULT_MODE = "text-to-image"
WHOLE_FIELDS = ("width", "height", "num_inference_steps", "seed", "num_images")
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

    prompt: VisibleText = Field(min_length=1, max_length=MAX_PROMPT_CHARS, description="What the image shows.")
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
    num_images: int | None = Field(default=None, ge=1, le=64, description="How many images. Null: 1.")
    output_format: ImageFormat | None = Field(default=None, description="The encoding of the images. Null: png.")
    mode: str | None = Field(default=None, max_length=200, description=f"The saved graph to run. Null: {DEFAULT_MODE}.")
    job_id: JobId | None = Field(
        default=None,
        description="A UUID of the caller's choice. The same id again returns the same job, not a second one.",
    )
    callback_url: str | None = Field(
        default=None,
        max_length=MAX_URL_CHARS,
        json_schema_extra={"pattern": r"^https?://[^/?#@\s]+([/?#]|$)"},
        description="A URL that receives a signed POST when the job ends, repeated until it answers with 2xx.",
    )
    priority: Priority | None = Field(
        default=None, description="Jobs of a higher priority are taken first. Null: normal."
    )
    cancel_on_disconnect: bool | None = Field(
        default=None,
        description="Cancel the job if the caller hangs up before it ends. For requests that wait. Null: false.",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_whole_numbers(cls, values: Any) -> Any:
        # Not validators of the fields: those would hide the bounds from the JSON Schema.
        if not isinstance(values, dict):
            return values
        return {name: as_whole(value) if name in WHOLE_FIELDS else value for name, value in values.items()}


class CancelRequest(WireModel):
    """The body of a cancellation over NATS."""

    job_id: JobId
