"""The answers to requests that wait for their job."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from bridge.contract.files import IMAGE_FORMATS, FileFormat, ImageObject, ResultFile, format_of
from bridge.contract.jobs import JobState
from bridge.contract.wire import WireModel


class ImageGenResponse(WireModel):
    """The images and the values that produced them. `seed` is that of the first image; image i has seed + i."""

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
    image_format: FileFormat = Field(
        description="The format of the first image, or of the first file if none is an image."
    )
    image_bytes_b64: str | None = Field(
        description="The first image, or the first file where none is an image; base64. Null where `image_object` "
        "is given."
    )
    images: list[str] = Field(
        description="All images (or other files: see `files`), base64. Empty where `image_objects` is given."
    )
    files: list[ResultFile] = Field(default_factory=list, description="A description of each image, in the same order.")
    image_object: ImageObject | None = Field(
        default=None, description="NATS only: the first image, when the reply would exceed the server's max_payload."
    )
    image_objects: list[ImageObject] = Field(default_factory=list)
    queue_time_ms: float
    generation_time_ms: float
    warnings: list[str] = Field(default_factory=list, description="Values that had no effect, and why.")

    @classmethod
    def of(cls, state: JobState, images: Sequence[str] = (), *, by_reference: bool = False) -> ImageGenResponse:
        """The answer for a job that is done. `images` are its images in base64, unless they go by reference."""
        given = state.parameters
        first = _first_image(state)
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

    @classmethod
    def inline_bytes(cls, state: JobState) -> int:
        """The size of the answer with its images in base64, as JSON. The first image is in it twice."""
        contents = [base64_bytes(image.size) + len('"",') for image in state.images]
        doubled = contents[_first_image(state)] if contents else 0
        return len(cls.of(state).model_dump_json().encode()) + sum(contents) + doubled


def base64_bytes(size: int) -> int:
    """The length of `size` bytes in base64."""
    return (size + 2) // 3 * 4


def _first_image(state: JobState) -> int:
    """The index of the first result that is an image; 0 if none is."""
    return next((index for index, image in enumerate(state.images) if format_of(image.name) in IMAGE_FORMATS), 0)


ECHOED = ("negative_prompt", "width", "height", "num_inference_steps", "guidance_scale", "seed")
"""Parameters that the response repeats with the values that were used."""


class LoadModelResponse(WireModel):
    """A model that is now loaded. `load_time_ms` is near 0 for a model that was loaded before."""

    job_id: str
    model: str
    load_time_ms: float
    device: str
    dtype: str
    offload: str
