"""Nodes for making an image of another one: encode it, say what to redraw, and put the result back."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..adapters.borrow import borrow
from ..errors import InvalidParameter
from ..images.frames import FIT_CHOICES, Frame, plan_frame, size_in_pixels
from ..images.masks import check_mask, extended, mask_from
from ..library.known_models import known_models
from ..loading.handle import PipelineHandle
from ..loading.node_progress import NodeReporter
from ..stages.image_encoding import encode_images
from ..stages.latent import current_origin, put_back
from .inputs import batch_input, pipeline_input, size_inputs
from .sockets import CATEGORY
from .stages import warnings_ui

IMAGES = f"{CATEGORY}/images"
MOST_FEATHER = 1024
MOST_ADDED = 8192


def feather_input() -> io.Int.Input:
    """The feather widget."""
    return io.Int.Input(
        "feather",
        default=8,
        min=0,
        max=MOST_FEATHER,
        tooltip=(
            "Pixels over which the new is blended into the old, inside the part that is redrawn: what is outside of it "
            "stays untouched. 0: a hard edge."
        ),
    )


def fit_inputs(auto: str) -> list[io.Input]:
    """How an image is fitted to the model; ``auto``: what a side of 0 means."""
    return [
        io.Combo.Input(
            "fit",
            options=list(FIT_CHOICES),
            default="crop",
            tooltip=(
                "When the image's size does not suit the model. crop: cut off at the edges. pad: repeat the edges, "
                "which Put Back cuts off again. stretch: change its proportions. error: refuse it. Images beyond the "
                "model's limits are scaled first."
            ),
        ),
        *size_inputs(f"Pixels to work in, a multiple of 16. 0: {auto}."),
        batch_input("How many to make of each image."),
    ]


def encoded(
    pipeline: PipelineHandle, image: torch.Tensor, mask: torch.Tensor | None, frame: Frame, batch_size: int
) -> io.NodeOutput:
    """The LATENT, and what was done to the image."""
    pipeline.model.limits.num_images.check(image.shape[0] * batch_size)
    loaded = borrow(pipeline, NodeReporter())
    latent = encode_images(loaded, image, mask, frame, batch_size)
    change = frame.summary()
    return io.NodeOutput(latent, ui=warnings_ui(loaded, [change] if change else []))


class EncodeImage(io.ComfyNode):
    """Encode Image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxEncodeImage",
            display_name="Encode Image",
            category=IMAGES,
            description=(
                "An image for Sample to begin with, fitted to what the model takes. With a mask, only the masked part "
                "is redrawn."
            ),
            inputs=[
                pipeline_input(),
                io.Image.Input("image", tooltip="The image, or a batch of images of one size."),
                *fit_inputs("the image's own"),
                io.Mask.Input("mask", optional=True, tooltip="White (above 0) is redrawn. It is resized to the image."),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="The image for Sample, and for Put Back.")
            ],
        )

    @classmethod
    def execute(
        cls,
        pipeline: PipelineHandle,
        image: torch.Tensor,
        fit: str,
        width: int,
        height: int,
        batch_size: int,
        mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        frame = plan_frame(pipeline.model, (image.shape[2], image.shape[1]), fit, width, height)
        if mask is not None:
            check_mask(mask)
        return encoded(pipeline, image, mask, frame, batch_size)


class ImageToEdit(io.ComfyNode):
    """Image to Edit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxImageToEdit",
            display_name="Image to Edit",
            category=IMAGES,
            description=(
                "An image for a model that follows an instruction, such as FLUX.1 Kontext. Refuses every other model."
            ),
            inputs=[
                pipeline_input("A model that edits: flux-kontext-dev, or a folder of one."),
                io.Image.Input("image", tooltip="The image, or a batch of images of one size."),
                *fit_inputs("as many pixels in all as the model likes, in the image's proportions"),
            ],
            outputs=[io.Latent.Output("latent", display_name="latent", tooltip="The image for Sample.")],
        )

    @classmethod
    def execute(
        cls, pipeline: PipelineHandle, image: torch.Tensor, fit: str, width: int, height: int, batch_size: int
    ) -> io.NodeOutput:
        model = pipeline.model
        if model.purpose != "edit":
            names = [name for name, known in known_models().models.items() if known.purpose == "edit"]
            raise InvalidParameter(
                "model",
                f"{model.name} does not edit by an instruction; choose {' or '.join(names)}, "
                "or redraw the image with the mode image-to-image",
            )
        given = image.shape[2], image.shape[1]
        if not (width or height or fit == "error"):
            width, height = size_in_pixels(model, given)
        return encoded(pipeline, image, None, plan_frame(model, given, fit, width, height), batch_size)


class PrepareMask(io.ComfyNode):
    """Prepare Mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxPrepareMask",
            display_name="Prepare Mask",
            category=IMAGES,
            description="Which part to redraw: the white part of a mask image, or else what is transparent.",
            inputs=[
                feather_input(),
                io.Boolean.Input("invert", default=False, tooltip="Redraw everything but that part."),
                io.Image.Input(
                    "mask_image", optional=True, tooltip="White is redrawn, black is kept. Goes before transparency."
                ),
                io.Mask.Input("transparency", optional=True, tooltip="A mask, such as an Image Parameter's."),
            ],
            outputs=[io.Mask.Output("mask", display_name="mask", tooltip="1: redrawn; 0: kept; between: blended.")],
        )

    @classmethod
    def execute(
        cls,
        feather: int,
        invert: bool,
        mask_image: torch.Tensor | None = None,
        transparency: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        return io.NodeOutput(mask_from(mask_image, transparency, feather, invert))


class ExtendImage(io.ComfyNode):
    """Extend Image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str) -> io.Int.Input:
            return io.Int.Input(
                name, default=0, min=0, max=MOST_ADDED, tooltip="Pixels to add on this side of the image."
            )

        return io.Schema(
            node_id="NeuroLuxExtendImage",
            display_name="Extend Image",
            category=IMAGES,
            description="Makes room around an image, and the mask of what is new, for Encode Image to fill.",
            inputs=[
                io.Image.Input("image", tooltip="The image."),
                side("left"),
                side("top"),
                side("right"),
                side("bottom"),
                feather_input(),
            ],
            outputs=[
                io.Image.Output("extended", display_name="image", tooltip="The larger image, its edges repeated."),
                io.Mask.Output("mask", display_name="mask", tooltip="1 where it is new; 0 where it is the image."),
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, left: int, top: int, right: int, bottom: int, feather: int) -> io.NodeOutput:
        return io.NodeOutput(*extended(image, (left, top, right, bottom), feather))


class PutBack(io.ComfyNode):
    """Put Back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxPutBack",
            display_name="Put Back",
            category=IMAGES,
            description=(
                "Puts finished images back into the ones that they were made of, at their own size. What was not "
                "masked is the original's, pixel for pixel."
            ),
            inputs=[
                io.Image.Input("images", tooltip="The finished images, from Decode."),
                io.Latent.Input("latent", tooltip="What Encode Image made of the originals."),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The images in the originals' size.")],
        )

    @classmethod
    def execute(cls, images: torch.Tensor, latent: dict[str, Any]) -> io.NodeOutput:
        origin = current_origin(latent)
        if origin is None:
            raise InvalidParameter(
                "latent",
                "the latent does not know the image that it was made of; link Encode Image's latent itself",
            )
        return io.NodeOutput(put_back(images, origin))
