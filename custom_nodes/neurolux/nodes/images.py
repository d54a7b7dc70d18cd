"""Nodes that start from an existing image: encode it, select what to redraw, and put the result back."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..adapters.borrow import borrow
from ..catalog.models import EDITS
from ..errors import InvalidParameter
from ..images.frames import FIT_CHOICES, Frame, mask_warnings, plan_frame, size_in_pixels
from ..images.masks import as_mask, check_mask, extended, mask_from
from ..images.pixels import check_images, rgb, unused_alpha
from ..library.known_models import known_models
from ..loading.handle import PipelineHandle
from ..loading.node_progress import NodeReporter
from ..stages.image_encoding import encode_images
from ..stages.latent import current_origin, put_back
from ..stages.references import check_reference, refuse_several
from .schema.inputs import batch_input, pipeline_input, size_inputs
from .schema.outputs import stage_warnings_ui, warnings_ui
from .schema.sockets import CATEGORY

IMAGES = f"{CATEGORY}/images"
MOST_FEATHER = 1024
MOST_ADDED = 8192
REFERENCES = {"image_2": "second", "image_3": "third"}
"""The inputs of Image to Edit for further images."""


def feather_input() -> io.Int.Input:
    """The feather widget."""
    return io.Int.Input(
        "feather",
        default=8,
        min=0,
        max=MOST_FEATHER,
        tooltip=(
            "Width in pixels of the blend between new and old content. It is inside the redrawn area; everything "
            "outside stays untouched. 0: a hard edge."
        ),
    )


def fit_inputs(auto: str) -> list[io.Input]:
    """How an image is fitted to the model. ``auto``: what a side of 0 means."""
    return [
        io.Combo.Input(
            "fit",
            options=list(FIT_CHOICES),
            default="crop",
            tooltip=(
                "What to do if the image's size does not suit the model. crop: cut off the edges. pad: repeat the "
                "edges; Put Back removes them again. stretch: change the proportions. error: reject the image. Images "
                "beyond the model's limits are scaled first."
            ),
        ),
        *size_inputs(f"Working size in pixels, a multiple of 16. 0: {auto}."),
        batch_input("Number of results per image."),
    ]


def encoded(
    node: type[io.ComfyNode],
    pipeline: PipelineHandle,
    image: torch.Tensor,
    mask: torch.Tensor | None,
    frame: Frame,
    batch_size: int,
    references: tuple[torch.Tensor, ...] = (),
) -> io.NodeOutput:
    """The LATENT, with a warning about what was done to the image. ``references``: each (H, W, C)."""
    image = one_for_each(image, mask)
    pipeline.model.limits.num_images.check(image.shape[0] * batch_size)
    loaded = borrow(pipeline, NodeReporter())
    latent = encode_images(loaded, image, mask, frame, batch_size)
    if references:
        latent["references"] = tuple(rgb(each[None])[0].detach().float().cpu().clamp(0, 1) for each in references)
    change = frame.summary()
    transparent = next((each[None] for each in references if unused_alpha(each[None])), image)
    unused = unused_alpha(transparent, ": only colours are encoded; to redraw what is transparent, make a mask of it")
    masked = [] if mask is None else mask_warnings(mask, frame.given, len(image))
    return io.NodeOutput(latent, ui=stage_warnings_ui(node, loaded, [*([change] if change else []), *masked, *unused]))


def one_for_each(image: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Images (B, H, W, C): a single one as often as there are masks. Raises InvalidParameter for too many masks."""
    masks = 1 if mask is None else len(mask.reshape(-1, *mask.shape[-2:]))
    if masks <= len(image):
        return image
    if len(image) > 1:
        raise InvalidParameter(
            "mask",
            f"there are {masks} masks and {len(image)} images; send one mask for all images or one for each",
        )
    return image.repeat(masks, 1, 1, 1)


class EncodeImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxEncodeImage",
            display_name="Encode Image",
            category=IMAGES,
            description=(
                "Encodes an image as the starting point for Sample, fitted to the sizes that the model accepts. With a "
                "mask, only the masked area is redrawn."
            ),
            inputs=[
                pipeline_input(),
                io.Image.Input("image", tooltip="The image, or a batch of images of the same size."),
                *fit_inputs("the image's own size"),
                io.Mask.Input(
                    "mask", optional=True, tooltip="White areas (above 0) are redrawn. Resized to the image."
                ),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="The encoded image, for Sample and Put Back.")
            ],
            hidden=[io.Hidden.prompt],
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
        check_images(image)
        frame = plan_frame(pipeline.model, (image.shape[2], image.shape[1]), fit, width, height)
        if mask is not None:
            check_mask(mask := as_mask(mask))
        return encoded(cls, pipeline, image, mask, frame, batch_size)


class ImageToEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxImageToEdit",
            display_name="Image to Edit",
            category=IMAGES,
            description=(
                "Encodes an image for a model that edits by instruction, such as FLUX.1 Kontext or FLUX.2 klein. "
                "Rejects other models."
            ),
            inputs=[
                pipeline_input("An edit model: flux2-klein-4b, flux-kontext-dev, or a diffusers folder of that kind."),
                io.Image.Input("image", tooltip="The image, or a batch of images of the same size."),
                *fit_inputs("the model's preferred number of pixels, in the image's proportions"),
                *(
                    io.Image.Input(
                        name,
                        optional=True,
                        tooltip=(
                            f"The {place} image for the model to see, of any size: a person, an object, a style. A "
                            "batch is several images. Only for models that see more than one, such as FLUX.2 klein."
                        ),
                    )
                    for name, place in REFERENCES.items()
                ),
            ],
            outputs=[io.Latent.Output("latent", display_name="latent", tooltip="The encoded image, for Sample.")],
            hidden=[io.Hidden.prompt],
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
        image_2: torch.Tensor | None = None,
        image_3: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        model = pipeline.model
        if model.purpose not in EDITS:
            names = [name for name, known in known_models().models.items() if known.purpose in EDITS]
            raise InvalidParameter(
                "model",
                f"{model.name} does not edit by instruction; choose {' or '.join(names)}, "
                "or redraw the image with the mode image-to-image",
            )
        check_images(image)
        references: list[torch.Tensor] = []
        for name, more in zip(REFERENCES, (image_2, image_3), strict=True):
            if more is None:
                continue
            refuse_several(model, name, f"take out {name}")
            check_images(more)
            check_reference(model, name, more[0])
            references += more
        given = image.shape[2], image.shape[1]
        if not (width or height or fit == "error"):
            width, height = size_in_pixels(model, given)
        frame = plan_frame(model, given, fit, width, height)
        return encoded(cls, pipeline, image, None, frame, batch_size, tuple(references))


class PrepareMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxPrepareMask",
            display_name="Prepare Mask",
            category=IMAGES,
            description="Selects the area to redraw: the white area of a mask image, or else a transparent area.",
            inputs=[
                feather_input(),
                io.Boolean.Input("invert", default=False, tooltip="Redraw everything outside that area instead."),
                io.Image.Input(
                    "mask_image",
                    optional=True,
                    tooltip="White is redrawn, black is kept. Takes precedence over transparency.",
                ),
                io.Mask.Input("transparency", optional=True, tooltip="A mask, such as that of Load Image."),
                io.Mask.Input(
                    "mask_transparency",
                    optional=True,
                    tooltip="The transparency of the mask image, such as the mask output of its Load Image.",
                ),
            ],
            outputs=[io.Mask.Output("mask", display_name="mask", tooltip="1: redrawn. 0: kept. In between: blended.")],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls,
        feather: int,
        invert: bool,
        mask_image: torch.Tensor | None = None,
        transparency: torch.Tensor | None = None,
        mask_transparency: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        read = mask_from(mask_image, transparency, feather, invert, mask_transparency)
        return io.NodeOutput(read.mask, ui=warnings_ui(cls, read.warnings))


class ExtendImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str) -> io.Int.Input:
            return io.Int.Input(name, default=0, min=0, max=MOST_ADDED, tooltip="Pixels to add on this side.")

        return io.Schema(
            node_id="NeuroLuxExtendImage",
            display_name="Extend Image",
            category=IMAGES,
            description="Adds space around an image, and makes a mask of the new area, for Encode Image.",
            inputs=[
                io.Image.Input("image", tooltip="The image to extend."),
                side("left"),
                side("top"),
                side("right"),
                side("bottom"),
                feather_input(),
            ],
            outputs=[
                io.Image.Output(
                    "extended", display_name="image", tooltip="The extended image. The new area repeats the edges."
                ),
                io.Mask.Output("mask", display_name="mask", tooltip="1 in the new area, 0 in the original image."),
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, left: int, top: int, right: int, bottom: int, feather: int) -> io.NodeOutput:
        return io.NodeOutput(*extended(image, (left, top, right, bottom), feather))


class PutBack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxPutBack",
            display_name="Put Back",
            category=IMAGES,
            description=(
                "Pastes finished images back into their originals, at the originals' size. Unmasked pixels are "
                "identical to the original."
            ),
            inputs=[
                io.Image.Input("images", tooltip="The finished images, from Decode."),
                io.Latent.Input(
                    "latent",
                    tooltip="The latent that Sample began with: from Encode Image, perhaps with a new mask.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The images, at the size of the originals.")
            ],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, images: torch.Tensor, latent: dict[str, Any]) -> io.NodeOutput:
        origin = current_origin(latent)
        if origin is None:
            raise InvalidParameter(
                "latent",
                "the latent does not hold its source image; link the latent output of Encode Image directly",
            )
        size, expected = (images.shape[2], images.shape[1]), origin.frame.size
        back = put_back(images, origin)
        scaled = f"the images of {size[0]}x{size[1]} were scaled to {expected[0]}x{expected[1]}, as they were encoded"
        warnings = [*([] if size == expected else [scaled]), *unused_alpha(images)]
        return io.NodeOutput(back, ui=warnings_ui(cls, warnings))
