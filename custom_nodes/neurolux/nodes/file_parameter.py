"""The boundary node for a file that is no image, such as a zip of images to learn from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..errors import InvalidParameter
from .parameters import PARAMETERS, description_input, input_names, name_input, required_input

FILE_SUFFIXES = (".zip", ".safetensors", ".json", ".txt")
"""Of the files that the editor offers; one that a request sends may be an image as well."""


def input_file(name: str) -> Path | None:
    """The file of that name in ComfyUI's input folder (or the one that `[output]` or `[temp]` behind it means).

    None where there is none. A name that leads out of the folder is no name of a file in it.
    """
    name, base = folder_paths.annotated_filepath(name)
    folder = Path(base or folder_paths.get_input_directory()).resolve()
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder) and path.is_file() else None


class FileParameter(io.ComfyNode):
    """File Parameter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxFileParameter",
            display_name="File Parameter",
            category=PARAMETERS,
            description="A file that a request to this graph may send, such as a zip of images.",
            inputs=[
                name_input("file"),
                io.Combo.Input(
                    "file",
                    options=sorted(name for name in input_names() if name.lower().endswith(FILE_SUFFIXES)),
                    tooltip="The file when a request sends none: one in ComfyUI's input folder.",
                ),
                description_input(),
                required_input(),
                io.String.Input(
                    "accept",
                    default="zip",
                    tooltip=(
                        "Kinds of file that a request may send, with commas between: zip, safetensors, json, txt, png, "
                        "jpg, webp. Empty: any of them."
                    ),
                ),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="Where the file is.")],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        """A file that is given must exist; the built-in check would refuse one uploaded a moment ago."""
        if file and input_file(file) is None:
            return f"no file {file!r} in ComfyUI's input folder; upload it first"
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_: object) -> str:
        path = input_file(file) if file else None
        if path is None:
            return ""
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    @classmethod
    def execute(cls, name: str, file: str, description: str, required: bool, accept: str) -> io.NodeOutput:
        if not file:
            if required:
                raise InvalidParameter(name, f"{name} is required and is empty; send a file")
            return io.NodeOutput(ExecutionBlocker(None))  # what depends on it does not run
        path = input_file(file)
        if path is None:
            raise InvalidParameter(name, f"{name}: there is no file {file!r} in ComfyUI's input folder any more")
        return io.NodeOutput(str(path))
