"""Images as files that reopen the graph that made them: PNG, JPEG and WebP."""

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
"""Where image viewers look for prompt and settings: this text of a PNG, the user comment of the others' EXIF."""
MAX_JPEG_EXIF = 65_500
"""A JPEG segment holds 64 KiB; a workflow that is larger cannot be written into one."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageMetadata:
    """The graph that made an image: API format, and what the editor sent along (its own format)."""

    prompt: Mapping[str, Any] | None
    extra: Mapping[str, Any]
    caption: str = ""
    """This image's own prompt and settings, where the graph made several."""

    def png_chunks(self) -> PngInfo:
        """Text chunks, as ComfyUI's SaveImage writes them."""
        chunks = PngInfo()
        if self.prompt is not None:
            chunks.add_text("prompt", json.dumps(self.prompt))
        for key, value in self.extra.items():
            chunks.add_text(key, json.dumps(value))
        if self.caption:
            chunks.add_text(PNG_CAPTION, self.caption)
        return chunks

    def exif(self) -> Image.Exif:
        """EXIF, as ComfyUI's own WebP saver writes it: prompt in Model, the others in Make and the tags below it."""
        exif = Image.Exif()
        if self.prompt is not None:
            exif[EXIF_MODEL] = f"prompt:{json.dumps(self.prompt)}"
        for index, (key, value) in enumerate(self.extra.items()):
            exif[EXIF_MAKE - index] = f"{key}:{json.dumps(value)}"
        if self.caption:
            exif.get_ifd(EXIF_IFD)[EXIF_USER_COMMENT] = b"UNICODE\0" + self.caption.encode("utf-16-be")
        return exif


def save_image(image: Image.Image, path: Path, output_format: str, quality: int, metadata: ImageMetadata) -> None:
    """Write ``image`` with its metadata; a JPEG's is left out, with a warning, where it does not fit."""
    if output_format == "png":
        image.save(path, pnginfo=metadata.png_chunks(), compress_level=PNG_COMPRESSION)
        return
    exif = metadata.exif()
    if output_format == "jpeg" and len(exif.tobytes()) > MAX_JPEG_EXIF:
        _log.warning("NeuroLux: the graph is too large for a JPEG's metadata; %s does not reopen it", path.name)
        exif = ImageMetadata(None, {}, metadata.caption).exif()
    image.save(path, format=output_format.upper(), quality=quality, exif=exif)
