"""Files on the wire: formats with their extensions and media types, stored files, and result files."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from bridge.contract.wire import WireModel

ImageFormat = Literal["png", "jpeg", "webp"]
FileFormat = Literal["png", "jpeg", "webp", "mp4", "safetensors", "zip", "json", "txt"]
"""Formats of results: images, and what other modes produce. An animation is a webp."""
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
"""File name extensions."""
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
"""Media types by extension."""
UNKNOWN_MEDIA_TYPE = "application/octet-stream"
_FORMATS: dict[str, FileFormat] = {**{extension: name for name, extension in EXTENSIONS.items()}, "jpeg": "jpeg"}


def extension_of(filename: str) -> str:
    """The extension of a file name in lower case, without the dot; empty if there is none."""
    return filename.rpartition(".")[2].lower() if "." in filename else ""


def format_of(filename: str) -> FileFormat | None:
    """The format of a file, by its name; None for a format that no result has."""
    return _FORMATS.get(extension_of(filename))


def media_type_of(filename: str) -> str:
    """The media type of a file, by its name."""
    return MEDIA_TYPES.get(extension_of(filename), UNKNOWN_MEDIA_TYPE)


class ImageObject(WireModel):
    """An image, or another file, in the NATS object store.

    `digest` is the store's own: `SHA-256=` + base64url. `media_type` follows from the extension of `name`.
    """

    bucket: str
    name: str
    size: int
    digest: str
    media_type: str = ""
    result: str = Field(default="", description="The name of the result in the graph.")
    s3_uri: str | None = Field(default=None, description="Its copy in S3, as `s3://bucket/key`, where there is one.")
    url: str | None = Field(default=None, description="A presigned URL of the copy, made for this answer.")
    url_expires_at: float | None = Field(default=None, description="When that URL expires.")

    @model_validator(mode="before")
    @classmethod
    def _name_media_type(cls, values: Any) -> Any:
        # Objects stored before this field existed have the format in their name too.
        if isinstance(values, dict) and not values.get("media_type") and isinstance(values.get("name"), str):
            return {**values, "media_type": media_type_of(values["name"])}
        return values


class ResultFile(WireModel):
    """One of the files of an answer."""

    result: str = Field(description="The name of the result in the graph.")
    media_type: str
    extension: str = Field(description="The file name extension, such as png or mp4.")
    size: int = Field(description="In bytes.")
    url: str | None = Field(default=None, description="A presigned URL, where results are copied to S3.")
    url_expires_at: float | None = Field(default=None, description="When that URL expires.")

    @classmethod
    def of(cls, image: ImageObject) -> ResultFile:
        """The description of a stored file."""
        return cls(
            result=image.result,
            media_type=image.media_type,
            extension=extension_of(image.name),
            size=image.size,
            url=image.url,
            url_expires_at=image.url_expires_at,
        )
