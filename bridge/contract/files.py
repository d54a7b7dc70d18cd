"""Files on the wire: formats with their extensions and media types, stored files, and result files."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from bridge.contract.wire import WireModel

ImageFormat = Literal["png", "jpeg", "webp"]
FileFormat = Literal["png", "jpeg", "webp", "mp4", "safetensors", "zip", "json", "txt"]
"""Of a result: images, and what other modes make. An animation is a webp."""
IMAGE_FORMATS: tuple[ImageFormat, ...] = ("png", "jpeg", "webp")
EXTENSIONS: dict[FileFormat, str] = {
    "png": "png",
    "jpeg": "jpg",
    "webp": "webp",
    "mp4": "mp4",
    "safetensors": "safetensors",
    "zip": "zip",
    "json": "json",
    "txt": "txt",
}
"""Of file names."""
MEDIA_TYPES: dict[str, str] = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "mp4": "video/mp4",
    "safetensors": "application/octet-stream",
    "zip": "application/zip",
    "json": "application/json",
    "txt": "text/plain",
}
"""By extension."""
UNKNOWN_MEDIA_TYPE = "application/octet-stream"
_FORMATS: dict[str, FileFormat] = {**{extension: name for name, extension in EXTENSIONS.items()}, "jpeg": "jpeg"}


def extension_of(filename: str) -> str:
    """What stands behind the last point of a file's name, in small letters; empty where there is none."""
    return filename.rpartition(".")[2].lower() if "." in filename else ""


def format_of(filename: str) -> FileFormat | None:
    """What a file is, by its name; None for a kind that no result may have."""
    return _FORMATS.get(extension_of(filename))


def media_type_of(filename: str) -> str:
    """The media type of a file, by its name."""
    return MEDIA_TYPES.get(extension_of(filename), UNKNOWN_MEDIA_TYPE)


class ImageObject(WireModel):
    """Where an image, or another file, lies in the NATS object store.

    `digest` is the store's own: `SHA-256=` + base64url. `media_type` follows from the extension of `name`.
    """

    bucket: str
    name: str
    size: int
    digest: str
    media_type: str = ""
    result: str = Field(default="", description="The name of the graph's result that it belongs to.")

    @model_validator(mode="before")
    @classmethod
    def _name_media_type(cls, values: Any) -> Any:
        # Those that were stored before there was this field are named by their format as well.
        if isinstance(values, dict) and not values.get("media_type") and isinstance(values.get("name"), str):
            return {**values, "media_type": media_type_of(values["name"])}
        return values


class ResultFile(WireModel):
    """What one of the files of an answer is."""

    result: str = Field(description="The name of the graph's result that it belongs to.")
    media_type: str
    extension: str = Field(description="Of a name to save it under, such as png or mp4.")
    size: int = Field(description="In bytes.")

    @classmethod
    def of(cls, image: ImageObject) -> ResultFile:
        """What is told of a stored file."""
        return cls(
            result=image.result, media_type=image.media_type, extension=extension_of(image.name), size=image.size
        )
