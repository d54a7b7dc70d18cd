"""The result node for a file that is no image: a trained LoRA, say."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..errors import InvalidParameter
from .sockets import CATEGORY, FileType

SUFFIXES = (".safetensors", ".json", ".txt", ".zip", ".png", ".jpg", ".webp", ".mp4")
"""What a response has a media type for."""


class FileResult(io.ComfyNode):
    """File Result."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxFileResult",
            display_name="File Result",
            category=CATEGORY,
            description="A file that a request to this graph gets back, such as a trained LoRA.",
            inputs=[
                FileType.Input("file", tooltip="The file."),
                io.String.Input("name", default="file", tooltip="The result's name in the response."),
                io.String.Input(
                    "filename_prefix",
                    default="",
                    tooltip="Start of the name in the output folder. Empty: the file's own name.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> str:
        """Never cached: every job has files of its own."""
        return uuid.uuid4().hex

    @classmethod
    def execute(cls, file: Path, name: str, filename_prefix: str) -> io.NodeOutput:
        if file.suffix.lower() not in SUFFIXES:
            raise InvalidParameter(name, f"{name}: {file.name} is no file that can be sent; use {', '.join(SUFFIXES)}")
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix or file.stem, folder_paths.get_output_directory()
        )
        copy = Path(folder) / f"{stem}_{counter:05}_{file.suffix.lower()}"
        try:
            link_or_copy(file, copy)
        except FileNotFoundError as error:
            raise InvalidParameter(
                name, f"{name}: {file} is not there any more; change a value of the node that made it and queue again"
            ) from error
        saved = {"filename": copy.name, "subfolder": subfolder, "type": "output"}
        return io.NodeOutput(ui={"images": [saved], "text": [copy.name]})


def link_or_copy(file: Path, copy: Path) -> None:
    """A second name for ``file``, or a copy where the file system or its border does not allow that."""
    try:
        os.link(file, copy)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(file, copy)
