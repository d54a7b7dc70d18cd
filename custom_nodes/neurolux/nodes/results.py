"""Result nodes: what a request to the graph gets back. They save files in ComfyUI's output folder."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import io

from ..errors import InvalidParameter
from ..images.image_file import SUFFIXES, ImageMetadata, save_image
from ..images.pixels import as_images, rgb, unused_alpha
from .schema.kept_warnings import told_before
from .schema.sockets import CATEGORY, FileType

VIDEO = f"{CATEGORY}/video"
VIDEO_FORMATS = ("mp4", "webp", "mp4 and webp")
FILE_SUFFIXES = (".safetensors", ".json", ".txt", ".zip", ".png", ".jpg", ".webp", ".mp4")
"""What a response has a media type for."""


class ResultNode(io.ComfyNode):
    """What result nodes have in common."""

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> str:
        """Never cached: every job has files of its own.

        ComfyUI writes this value into the prompt and so into ``/history``, where the usual NaN is not valid JSON.
        """
        return uuid.uuid4().hex

    @classmethod
    def told(cls, warnings: list[str]) -> dict[str, list[str]]:
        """``warnings``, and those of nodes before it that ComfyUI did not run again, for the response and on the node.

        Always both keys: where a node runs once for each item of a list, ComfyUI only joins the keys of the first.
        """
        found = list(dict.fromkeys([*warnings, *told_before(cls)]))
        return {"warnings": found, "text": list(found)}


class Result(ResultNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxResult",
            display_name="Result",
            category=CATEGORY,
            description="The result of a request to this graph. Saves the images with the graph that made them.",
            inputs=[
                io.Image.Input("images", tooltip="The images to save and return."),
                io.String.Input("name", default="images", tooltip="Name of the result in the response."),
                io.Combo.Input("output_format", options=list(SUFFIXES), default="png", tooltip="png is lossless."),
                io.Int.Input("quality", default=90, min=1, max=100, tooltip="Quality of jpeg and webp. 100 is best."),
                io.String.Input("filename_prefix", default="NeuroLux", tooltip="Start of the file names."),
                io.String.Input(
                    "caption",
                    optional=True,
                    force_input=True,
                    tooltip="Prompt and settings to write into the file. For a list of images, a list of captions.",
                ),
            ],
            is_output_node=True,
        )

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
        warnings = unused_alpha(images, ": jpeg has none; use png or webp") if output_format == "jpeg" else []
        saved = []
        for index, image in enumerate(as_images(images)):
            file = f"{stem.replace('%batch_num%', str(index))}_{counter + index:05}_{SUFFIXES[output_format]}"
            save_image(image, Path(folder) / file, output_format, quality, metadata)
            saved.append({"filename": file, "subfolder": subfolder, "type": "output"})
        return io.NodeOutput(ui={"images": saved, **cls.told(warnings)})


class VideoResult(ResultNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxVideoResult",
            display_name="Video Result",
            category=VIDEO,
            description="The result of a request to this graph: the images as one video, saved with the graph.",
            inputs=[
                io.Image.Input("images", tooltip="The frames, in order."),
                io.String.Input("name", default="video", tooltip="Name of the result in the response."),
                io.Float.Input(
                    "fps",
                    default=8.0,
                    min=1.0,
                    max=120.0,
                    step=0.5,
                    tooltip="Frames per second. AnimateDiff is made for 8.",
                ),
                io.Combo.Input(
                    "video_format",
                    options=list(VIDEO_FORMATS),
                    default=VIDEO_FORMATS[0],
                    tooltip="mp4 (H.264) plays everywhere. webp is an animated image for web pages.",
                ),
                io.Int.Input(
                    "quality", default=90, min=1, max=100, tooltip="100 is the best quality and the largest file."
                ),
                io.String.Input("filename_prefix", default="NeuroLux", tooltip="Start of the file name."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, images: torch.Tensor, name: str, fps: float, video_format: str, quality: int, filename_prefix: str
    ) -> io.NodeOutput:
        from ..images.video_file import write_mp4, write_webp

        if video_format not in VIDEO_FORMATS:
            raise InvalidParameter(
                "video_format", f"video_format {video_format!r} is not known; use {', '.join(VIDEO_FORMATS)}"
            )
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), images.shape[2], images.shape[1]
        )
        metadata = metadata_of(cls.hidden)
        frames, saved = as_images(rgb(images)), []
        for suffix in video_format.split(" and "):
            file = f"{stem}_{counter:05}_.{suffix}"
            path = Path(folder) / file
            if suffix == "mp4":
                graphs = {"prompt": metadata.prompt, **metadata.extra} if metadata.prompt is not None else {}
                write_mp4(frames, path, fps, quality, graphs)
            else:
                write_webp(frames, path, fps, quality, metadata.exif())
            saved.append({"filename": file, "subfolder": subfolder, "type": "output"})
        return io.NodeOutput(ui={"images": saved, "animated": (True,), **cls.told(unused_alpha(images))})


class FileResult(ResultNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxFileResult",
            display_name="File Result",
            category=CATEGORY,
            description="The result of a request to this graph: a file that is not an image, such as a trained LoRA.",
            inputs=[
                FileType.Input("file", tooltip="The file to return."),
                io.String.Input("name", default="file", tooltip="Name of the result in the response."),
                io.String.Input(
                    "filename_prefix",
                    default="",
                    tooltip="Start of the file name in the output folder. Empty: the file's own name.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, file: Path, name: str, filename_prefix: str) -> io.NodeOutput:
        if file.suffix.lower() not in FILE_SUFFIXES:
            raise InvalidParameter(name, f"{name}: {file.name} cannot be returned; use {', '.join(FILE_SUFFIXES)}")
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix or file.stem, folder_paths.get_output_directory()
        )
        copy = Path(folder) / f"{stem}_{counter:05}_{file.suffix.lower()}"
        try:
            link_or_copy(file, copy)
        except FileNotFoundError as error:
            raise InvalidParameter(
                name, f"{name}: {file} no longer exists; change a setting of the node that made it and queue again"
            ) from error
        saved = {"filename": copy.name, "subfolder": subfolder, "type": "output"}
        told = cls.told([])
        return io.NodeOutput(ui={"images": [saved], **told, "text": [copy.name, *told["text"]]})


def as_posted(prompt: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The prompt without the ``is_changed`` values that ComfyUI adds to its nodes while it runs.

    They differ from run to run; without them the same request gives the same file, byte for byte.
    """
    if prompt is None:
        return None
    return {name: {key: node[key] for key in node if key != "is_changed"} for name, node in prompt.items()}


def metadata_of(hidden: io.HiddenHolder | None, caption: str = "") -> ImageMetadata:
    """What a node writes into its files; nothing if ComfyUI runs with ``--disable-metadata``."""
    if args.disable_metadata or hidden is None:
        return ImageMetadata(None, {})
    return ImageMetadata(as_posted(hidden.prompt), hidden.extra_pnginfo or {}, caption)


def link_or_copy(file: Path, copy: Path) -> None:
    """A hard link to ``file``, or a copy where the file system does not allow one."""
    try:
        os.link(file, copy)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(file, copy)
