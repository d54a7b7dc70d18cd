"""Boundary nodes: what a caller of the saved graph may set. In the editor they give their own value.

The first two inputs are always the name and the value: a parameter and its default are found by them. Values are
checked here as well, because a graph can be run from the editor, from ComfyUI's API or through a service alike.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..errors import InvalidParameter
from .inputs import seed_input
from .sockets import CATEGORY, LARGEST_INTEGER, LARGEST_SEED, AnyComboOutput

PARAMETERS = f"{CATEGORY}/parameters"
MAX_TEXT = 1_000_000
IF_MISSING = ("stop", "none")


def name_input(default: str) -> io.String.Input:
    """The parameter's name in a request."""
    return io.String.Input("name", default=default, tooltip="The parameter's name in a request to this graph.")


def description_input() -> io.String.Input:
    """A sentence for whoever calls the graph."""
    return io.String.Input("description", default="", tooltip="What the parameter does, for whoever calls the graph.")


def required_input() -> io.Boolean.Input:
    """Whether a request must give the parameter."""
    return io.Boolean.Input("required", default=False, tooltip="A request must give this parameter.")


def input_names() -> list[str]:
    """The files in ComfyUI's input folder, not those of its subfolders."""
    folder = Path(folder_paths.get_input_directory())
    return [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def check_bounds(name: str, value: float, minimum: float, maximum: float) -> None:
    """Raise InvalidParameter unless ``minimum`` <= ``value`` <= ``maximum``."""
    if minimum > maximum:
        raise InvalidParameter(name, f"{name}: minimum {minimum:g} is above maximum {maximum:g}; correct the node")
    if not minimum <= value <= maximum:
        nearest = minimum if value < minimum else maximum
        raise InvalidParameter(name, f"{name} {value:g} is outside {minimum:g} to {maximum:g}; nearest is {nearest:g}")


class TextParameter(io.ComfyNode):
    """Text Parameter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxTextParameter",
            display_name="Text Parameter",
            category=PARAMETERS,
            description="A text that a request to this graph may set, such as the prompt.",
            inputs=[
                name_input("prompt"),
                io.String.Input("value", default="", multiline=True, tooltip="The text when a request gives none."),
                description_input(),
                required_input(),
                io.Int.Input(
                    "max_length", default=0, min=0, max=MAX_TEXT, tooltip="Longest text, in characters. 0: any length."
                ),
            ],
            outputs=[io.String.Output("text", display_name="text", tooltip="The text.")],
        )

    @classmethod
    def execute(cls, name: str, value: str, description: str, required: bool, max_length: int) -> io.NodeOutput:
        if required and not value.strip():
            raise InvalidParameter(name, f"{name} is required and is empty; give it a text")
        if max_length and len(value) > max_length:
            raise InvalidParameter(name, f"{name} has {len(value)} characters; at most {max_length} are allowed")
        return io.NodeOutput(value)


class IntegerParameter(io.ComfyNode):
    """Integer Parameter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        bound = {"min": -LARGEST_INTEGER, "max": LARGEST_INTEGER}
        return io.Schema(
            node_id="NeuroLuxIntegerParameter",
            display_name="Integer Parameter",
            category=PARAMETERS,
            description="A whole number that a request to this graph may set, such as width or steps.",
            inputs=[
                name_input("steps"),
                io.Int.Input("value", default=0, **bound, tooltip="The number when a request gives none."),
                io.Int.Input("minimum", default=0, **bound, tooltip="Smallest number allowed."),
                io.Int.Input("maximum", default=100, **bound, tooltip="Largest number allowed."),
                io.Int.Input("step", default=1, min=1, max=LARGEST_INTEGER, tooltip="Distance between two numbers."),
                description_input(),
            ],
            outputs=[io.Int.Output("integer", display_name="integer", tooltip="The number.")],
        )

    @classmethod
    def execute(cls, name: str, value: int, minimum: int, maximum: int, step: int, description: str) -> io.NodeOutput:
        check_bounds(name, value, minimum, maximum)
        return io.NodeOutput(value)


class NumberParameter(io.ComfyNode):
    """Number Parameter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        bound = {"min": -1e9, "max": 1e9, "step": 0.01, "round": 1e-6}
        return io.Schema(
            node_id="NeuroLuxNumberParameter",
            display_name="Number Parameter",
            category=PARAMETERS,
            description="A number that a request to this graph may set, such as guidance or strength.",
            inputs=[
                name_input("guidance_scale"),
                io.Float.Input("value", default=0.0, **bound, tooltip="The number when a request gives none."),
                io.Float.Input("minimum", default=0.0, **bound, tooltip="Smallest number allowed."),
                io.Float.Input("maximum", default=1.0, **bound, tooltip="Largest number allowed."),
                io.Float.Input(
                    "step", default=0.01, min=0.0001, max=1e6, step=0.0001, tooltip="Distance between two numbers."
                ),
                description_input(),
            ],
            outputs=[io.Float.Output("number", display_name="number", tooltip="The number.")],
        )

    @classmethod
    def execute(
        cls, name: str, value: float, minimum: float, maximum: float, step: float, description: str
    ) -> io.NodeOutput:
        check_bounds(name, value, minimum, maximum)
        return io.NodeOutput(value)


class SeedParameter(io.ComfyNode):
    """Seed Parameter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxSeedParameter",
            display_name="Seed Parameter",
            category=PARAMETERS,
            description="The seed of a request. The same seed makes the same image; a request without one gets any.",
            inputs=[
                name_input("seed"),
                seed_input("The seed when run from the editor.", name="value"),
                description_input(),
            ],
            outputs=[io.Int.Output("seed", display_name="seed", tooltip="The seed.")],
        )

    @classmethod
    def execute(cls, name: str, value: int, description: str) -> io.NodeOutput:
        check_bounds(name, value, 0, LARGEST_SEED)
        return io.NodeOutput(value)


class ChoiceParameter(io.ComfyNode):
    """Choice Parameter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxChoiceParameter",
            display_name="Choice Parameter",
            category=PARAMETERS,
            description="One of several options that a request to this graph may choose. Links to any combo widget.",
            inputs=[
                name_input("model"),
                io.String.Input("value", default="", tooltip="The option when a request chooses none."),
                io.String.Input(
                    "choices",
                    default="",
                    multiline=True,
                    tooltip="The options, one a line. Empty: those of the widget that it is linked to.",
                ),
                description_input(),
            ],
            outputs=[AnyComboOutput("choice", display_name="choice", tooltip="The chosen option.")],
        )

    @classmethod
    def execute(cls, name: str, value: str, choices: str, description: str) -> io.NodeOutput:
        options = [line.strip() for line in choices.splitlines() if line.strip()]
        if options and value not in options:
            raise InvalidParameter(name, f"{name} {value!r} is not a choice; use {', '.join(options)}")
        return io.NodeOutput(value)


class BooleanParameter(io.ComfyNode):
    """Boolean Parameter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxBooleanParameter",
            display_name="Boolean Parameter",
            category=PARAMETERS,
            description="A switch that a request to this graph may set: true or false.",
            inputs=[
                name_input("enabled"),
                io.Boolean.Input("value", default=False, tooltip="The switch when a request does not set it."),
                description_input(),
            ],
            outputs=[io.Boolean.Output("boolean", display_name="boolean", tooltip="True or false.")],
        )

    @classmethod
    def execute(cls, name: str, value: bool, description: str) -> io.NodeOutput:
        return io.NodeOutput(value)


class ImageParameter(io.ComfyNode):
    """Image Parameter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxImageParameter",
            display_name="Image Parameter",
            category=PARAMETERS,
            description="An image that a request to this graph may send. Its transparency becomes the mask.",
            inputs=[
                name_input("image"),
                io.Combo.Input(
                    "image",
                    # the editor writes "undefined" for no image unless that is a choice
                    options=["", *sorted(folder_paths.filter_files_content_types(input_names(), ["image"]))],
                    upload=io.UploadType.image,
                    image_folder=io.FolderType.input,
                    tooltip="The image when a request sends none.",
                ),
                description_input(),
                required_input(),
                io.Combo.Input(
                    "if_missing",
                    options=list(IF_MISSING),
                    default=IF_MISSING[0],
                    optional=True,
                    tooltip=(
                        "Without an image that is not required. stop: what depends on it does not run. none: it runs "
                        "without, where the image is an optional input."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output("image_out", display_name="image", tooltip="The image, turned as its EXIF says."),
                io.Mask.Output("mask", display_name="mask", tooltip="1 where the image is transparent."),
            ],
        )

    @classmethod
    def validate_inputs(cls, image: str) -> bool | str:
        """An image that is given must exist; the built-in check would refuse one uploaded a moment ago."""
        if image and not folder_paths.exists_annotated_filepath(image):
            return f"no image {image!r} in ComfyUI's input folder; upload it first"
        return True

    @classmethod
    def fingerprint_inputs(cls, image: str | None = None, **_: object) -> str:
        if not image or not folder_paths.exists_annotated_filepath(image):
            return ""
        return hashlib.sha256(Path(folder_paths.get_annotated_filepath(image)).read_bytes()).hexdigest()

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
        import nodes as comfy_nodes  # ComfyUI's own LoadImage: same image, same mask

        load_image = comfy_nodes.LoadImage().load_image  # pyright: ignore[reportAttributeAccessIssue]
        return io.NodeOutput(*load_image(image))
