"""Writes images as PNG, JPEG or WebP files that contain their graph, so ComfyUI can reopen it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
PNG_COMPRESSION = 4
EXIF_MODEL, EXIF_MAKE = 0x0110, 0x010F
EXIF_IFD, EXIF_USER_COMMENT = 0x8769, 0x9286
PNG_CAPTION = "parameters"
"""The text chunk of a PNG where image viewers look for prompt and settings. Other formats use EXIF's user comment."""
MAX_JPEG_EXIF = 65_500
"""Maximum EXIF size in a JPEG, in bytes. A JPEG segment holds 64 KiB, and a larger workflow does not fit."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageMetadata:
    """The graph that made an image: in API format, and in the editor's own format (``extra``)."""

    prompt: Mapping[str, Any] | None
    extra: Mapping[str, Any]
    caption: str = ""
    """The prompt and settings of this image, if the graph made several."""

    def png_chunks(self) -> PngInfo:
        """PNG text chunks in the format of ComfyUI's SaveImage."""
        chunks = PngInfo()
        if self.prompt is not None:
            chunks.add_text("prompt", json.dumps(self.prompt))
        for key, value in self.extra.items():
            chunks.add_text(key, json.dumps(value))
        if self.caption:
            chunks.add_text(PNG_CAPTION, self.caption)
        return chunks

    def exif(self) -> Image.Exif:
        """EXIF in the format of ComfyUI's WebP saver: the prompt in Model, the rest in Make and the tags below it."""
        exif = Image.Exif()
        if self.prompt is not None:
            exif[EXIF_MODEL] = f"prompt:{json.dumps(self.prompt)}"
        for index, (key, value) in enumerate(self.extra.items()):
            exif[EXIF_MAKE - index] = f"{key}:{json.dumps(value)}"
        if self.caption:
            exif.get_ifd(EXIF_IFD)[EXIF_USER_COMMENT] = b"UNICODE\0" + self.caption.encode("utf-16-be")
        return exif


def save_image(image: Image.Image, path: Path, output_format: str, quality: int, metadata: ImageMetadata) -> None:
    """Write ``image`` with its metadata. Logs a warning and omits the graph if it does not fit into a JPEG."""
    if output_format == "png":
        image.save(path, pnginfo=metadata.png_chunks(), compress_level=PNG_COMPRESSION)
        return
    exif = metadata.exif()
    if output_format == "jpeg" and len(exif.tobytes()) > MAX_JPEG_EXIF:
        _log.warning("NeuroLux: the graph is too large for JPEG metadata; %s will not contain it", path.name)
        exif = ImageMetadata(None, {}, metadata.caption).exif()
    if output_format == "jpeg":
        image = image.convert("RGB")
    image.save(path, format=output_format.upper(), quality=quality, exif=exif)
