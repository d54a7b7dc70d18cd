"""File Parameter: what a request sends as a file that is not an image, such as a zip.

The file is a name in ComfyUI's input folder, where the editor and the service upload to.
"""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..errors import InvalidParameter
from .load_image import content_key, input_names
from .parameters import parameter_schema, required_input

FILE_SUFFIXES = (".zip", ".safetensors", ".json", ".txt")
"""Of the files that the editor offers; a request may send an image as well."""


def input_file(name: str) -> Path | None:
    """The file of that name in ComfyUI's input folder, or in that of an ``[output]`` or ``[temp]`` behind the name.

    None if there is no such file, or if the name leads out of the folder.
    """
    name, base = folder_paths.annotated_filepath(name)
    folder = Path(base or folder_paths.get_input_directory()).resolve()
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder) and path.is_file() else None


class FileParameter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return parameter_schema(
            "File",
            "A file that a request to this graph can send, such as a zip of images.",
            "file",
            [
                io.Combo.Input(
                    "file",
                    options=["", *sorted(name for name in input_names() if name.lower().endswith(FILE_SUFFIXES))],
                    tooltip="The file used when a request sends none: one in ComfyUI's input folder.",
                )
            ],
            [io.String.Output("path", display_name="path", tooltip="Path of the file.")],
            [
                required_input(),
                io.String.Input(
                    "accept",
                    default="zip",
                    tooltip=(
                        "File types that a request can send, separated by commas: zip, safetensors, json, txt, png, "
                        "jpg, webp. Empty: any of them."
                    ),
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        """A file that is given must exist; the built-in check would refuse one that was just uploaded."""
        if file and input_file(file) is None:
            return f"no file {file!r} in ComfyUI's input folder; upload it first"
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_: object) -> str:
        path = input_file(file) if file else None
        return content_key(path) if path is not None else ""

    @classmethod
    def execute(cls, name: str, file: str, description: str, required: bool, accept: str) -> io.NodeOutput:
        if not file:
            if required:
                raise InvalidParameter(name, f"{name} is required and is empty; send a file")
            return io.NodeOutput(ExecutionBlocker(None))  # what depends on it does not run
        path = input_file(file)
        if path is None:
            raise InvalidParameter(name, f"{name}: the file {file!r} is no longer in ComfyUI's input folder")
        return io.NodeOutput(str(path))
