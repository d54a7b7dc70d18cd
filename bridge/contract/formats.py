"""The kinds of file that go in and out: their names, extensions and media types."""

from __future__ import annotations

from typing import Literal

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
