"""The result node: what a request to the graph gets back. Writes files that reopen the graph in the editor."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import io
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import InvalidParameter
from .sockets import CATEGORY

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


def to_images(images: torch.Tensor) -> list[Image.Image]:
    """Images (B, H, W, C) in [0, 1] as images, rounded as diffusers rounds them (not cut off, as SaveImage does)."""
    pixels = (images.cpu().float().clamp(0, 1).numpy() * 255).round().astype("uint8")
    return [Image.fromarray(frame).convert("RGB") for frame in pixels]


def as_posted(prompt: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The prompt without the ``is_changed`` values that ComfyUI adds to its nodes while it runs.

    They differ from run to run; without them the same request gives the same file, byte for byte.
    """
    if prompt is None:
        return None
    return {name: {key: node[key] for key in node if key != "is_changed"} for name, node in prompt.items()}


def metadata_of(hidden: io.HiddenHolder | None, caption: str = "") -> ImageMetadata:
    """What a node writes into its files; nothing where ComfyUI was told to write no metadata."""
    if args.disable_metadata or hidden is None:
        return ImageMetadata(None, {})
    return ImageMetadata(as_posted(hidden.prompt), hidden.extra_pnginfo or {}, caption)


class Result(io.ComfyNode):
    """Result."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxResult",
            display_name="Result",
            category=CATEGORY,
            description="What a request to this graph gets back. Saves the images with the graph that made them.",
            inputs=[
                io.Image.Input("images", tooltip="The images."),
                io.String.Input("name", default="images", tooltip="The result's name in the response."),
                io.Combo.Input(
                    "output_format", options=list(SUFFIXES), default="png", tooltip="png keeps every pixel as it is."
                ),
                io.Int.Input("quality", default=90, min=1, max=100, tooltip="Of jpeg and webp. 100 is best."),
                io.String.Input("filename_prefix", default="NeuroLux", tooltip="Start of the files' names."),
                io.String.Input(
                    "caption",
                    optional=True,
                    force_input=True,
                    tooltip="Prompt and settings, to be written into the file. A list goes with a list of images.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> str:
        """Never cached: every job has files of its own.

        ComfyUI writes this value into the prompt and so into ``/history``, where the usual NaN is not valid JSON.
        """
        return uuid.uuid4().hex

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        name: str,
        output_format: str,
        quality: int,
        filename_prefix: str,
        caption: str = "",
    ) -> io.NodeOutput:
        if output_format not in SUFFIXES:
            raise InvalidParameter(
                "output_format", f"output_format {output_format!r} is not known; use {', '.join(SUFFIXES)}"
            )
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), images.shape[2], images.shape[1]
        )
        metadata = metadata_of(cls.hidden, caption)
        saved = []
        for index, image in enumerate(to_images(images)):
            file = f"{stem.replace('%batch_num%', str(index))}_{counter + index:05}_{SUFFIXES[output_format]}"
            save_image(image, Path(folder) / file, output_format, quality, metadata)
            saved.append({"filename": file, "subfolder": subfolder, "type": "output"})
        return io.NodeOutput(ui={"images": saved})
