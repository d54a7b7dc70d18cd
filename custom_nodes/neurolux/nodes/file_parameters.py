"""Parameter nodes for what a request sends as a file: an image, or a file of another kind, such as a zip.

Their file is a name in ComfyUI's input folder, where the editor and the service upload to.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..errors import InvalidParameter
from ..images.decoding import DecodedImage, UnreadableImage, decoded
from ..weights.user_files import open_regular
from .outputs import warnings_ui
from .parameters import parameter_schema, required_input

FILE_SUFFIXES = (".zip", ".safetensors", ".json", ".txt")
"""Of the files that the editor offers; a request may send an image as well."""
IF_MISSING = ("stop", "none")


def input_names() -> list[str]:
    """The files in ComfyUI's input folder, not those of its subfolders."""
    folder = Path(folder_paths.get_input_directory())
    return [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def input_file(name: str) -> Path | None:
    """The file of that name in ComfyUI's input folder, or in that of an ``[output]`` or ``[temp]`` behind the name.

    None if there is no such file, or if the name leads out of the folder.
    """
    name, base = folder_paths.annotated_filepath(name)
    folder = Path(base or folder_paths.get_input_directory()).resolve()
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder) and path.is_file() else None


def content_key(path: Path) -> str:
    """Changes with the file's content."""
    with open_regular(path) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class ImageParameter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return parameter_schema(
            "Image",
            "An image that a request to this graph can send. Its transparent area becomes the mask.",
            "image",
            [
                io.Combo.Input(
                    "image",
                    # The editor writes "undefined" for no image unless that is a choice.
                    options=["", *sorted(folder_paths.filter_files_content_types(input_names(), ["image"]))],
                    upload=io.UploadType.image,
                    image_folder=io.FolderType.input,
                    tooltip="The image used when a request sends none.",
                )
            ],
            [
                io.Image.Output(
                    "image_out", display_name="image", tooltip="The image in sRGB, upright as its EXIF data says."
                ),
                io.Mask.Output("mask", display_name="mask", tooltip="1 where the image is transparent."),
            ],
            [
                required_input(),
                io.Combo.Input(
                    "if_missing",
                    options=list(IF_MISSING),
                    default=IF_MISSING[0],
                    optional=True,
                    tooltip=(
                        "What happens when an optional image is not given. stop: nodes that depend on it do not run. "
                        "none: they run without it, if they do not require an image."
                    ),
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, image: str) -> bool | str:
        """An image that is given must exist; the built-in check would refuse one that was just uploaded."""
        if image and not folder_paths.exists_annotated_filepath(image):
            return f"no image {image!r} in ComfyUI's input folder; upload it first"
        return True

    @classmethod
    def fingerprint_inputs(cls, image: str | None = None, **_: object) -> str:
        if not image or not folder_paths.exists_annotated_filepath(image):
            return ""
        return content_key(Path(folder_paths.get_annotated_filepath(image)))

    @classmethod
    def execute(
        cls, name: str, image: str, description: str, required: bool, if_missing: str = IF_MISSING[0]
    ) -> io.NodeOutput:
        if not image:
            if required:
                raise InvalidParameter(name, f"{name} is required and is empty; send an image")
            if if_missing == "none":
                return io.NodeOutput(None, None)
            return io.NodeOutput(ExecutionBlocker(None), ExecutionBlocker(None))  # what depends on it does not run
        read = read_image(name, image)
        pixels, transparency = torch.from_numpy(read.pixels()), torch.from_numpy(read.transparency())
        warnings = [f"{name}: {warning}" for warning in read.warnings]
        return io.NodeOutput(pixels[None], transparency[None], ui=warnings_ui(cls, warnings))


def read_image(name: str, image: str) -> DecodedImage:
    """The image of parameter ``name`` in ComfyUI's folders. Raises InvalidParameter."""
    try:
        with open_regular(Path(folder_paths.get_annotated_filepath(image))) as opened:
            data = opened.read()
    except OSError as error:
        raise InvalidParameter(name, f"{name}: the image {image!r} cannot be read: {error}; upload it again") from error
    try:
        return decoded(data)
    except UnreadableImage as error:
        raise InvalidParameter(name, f"{name}: the image {image!r} {error}") from error


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
