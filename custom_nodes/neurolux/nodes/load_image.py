"""Load Image: an image from ComfyUI's input folder, decoded as the rest of the pack decodes, or none at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import folder_paths
import nodes as comfy_nodes
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import is_link
from comfy_execution.utils import get_executing_context

from ..errors import InvalidParameter
from ..images.decoding import DecodedImage, UnreadableImage, decoded
from ..weights.user_files import open_regular
from .schema.kept_warnings import title_of
from .schema.outputs import warnings_ui
from .schema.sockets import CATEGORY

IMAGES = f"{CATEGORY}/images"


def input_names() -> list[str]:
    """The files in ComfyUI's input folder, not those of its subfolders."""
    folder = Path(folder_paths.get_input_directory())
    return [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def content_key(path: Path) -> str:
    """Changes with the file's content."""
    with open_regular(path) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class LoadImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxLoadImage",
            display_name="Load Image or None",
            category=IMAGES,
            description=(
                "Loads an image, in sRGB and upright. Nothing may be chosen: nodes to which an image is optional then "
                "run without one."
            ),
            inputs=[
                io.Combo.Input(
                    "image",
                    # The editor writes "undefined" for no image unless that is a choice.
                    options=["", *sorted(folder_paths.filter_files_content_types(input_names(), ["image"]))],
                    upload=io.UploadType.image,
                    image_folder=io.FolderType.input,
                    tooltip="A file in ComfyUI's input folder, or nothing.",
                )
            ],
            outputs=[
                io.Image.Output(
                    "image_out", display_name="image", tooltip="The image in sRGB, upright as its EXIF data says."
                ),
                io.Mask.Output("mask", display_name="mask", tooltip="1 where the image is transparent."),
            ],
            hidden=[io.Hidden.prompt],
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
    def execute(cls, image: str) -> io.NodeOutput:
        name = own_title(cls)
        if not image:
            if (waiting := next(in_need(cls), None)) is not None:
                raise InvalidParameter("image", f"{name}: no image is chosen, and {waiting} needs one; choose one")
            return io.NodeOutput(None, None)
        read = read_image(name, image)
        pixels, transparency = torch.from_numpy(read.pixels()), torch.from_numpy(read.transparency())
        warnings = [f"{name}: {warning}" for warning in read.warnings]
        return io.NodeOutput(pixels[None], transparency[None], ui=warnings_ui(cls, warnings))


def own_title(node: type[io.ComfyNode]) -> str:
    """The title of the running node; what a graph calls the image."""
    context, hidden = get_executing_context(), node.hidden
    found = (hidden.prompt or {}).get(context.node_id) if context is not None and hidden is not None else None
    return (title_of(found) if found else "") or "Load Image"


def in_need(node: type[io.ComfyNode]) -> Iterator[str]:
    """The titles of the nodes that cannot run without an output of the running one."""
    context, hidden = get_executing_context(), node.hidden
    if context is None or hidden is None:
        return
    for other in (hidden.prompt or {}).values():
        known = comfy_nodes.NODE_CLASS_MAPPINGS.get(other.get("class_type", ""))  # pyright: ignore[reportAttributeAccessIssue]
        required = known.INPUT_TYPES().get("required", {}) if known is not None else {}
        for key, value in other.get("inputs", {}).items():
            if key in required and is_link(value) and value[0] == context.node_id:
                yield title_of(other) or str(other.get("class_type"))


def read_image(name: str, image: str) -> DecodedImage:
    """The image called ``name``, from a file in ComfyUI's folders. Raises InvalidParameter."""
    try:
        with open_regular(Path(folder_paths.get_annotated_filepath(image))) as opened:
            data = opened.read()
    except OSError as error:
        raise InvalidParameter("image", f"{name}: {image!r} cannot be read: {error}; upload it again") from error
    try:
        return decoded(data)
    except UnreadableImage as error:
        raise InvalidParameter("image", f"{name}: {image!r} {error}") from error
