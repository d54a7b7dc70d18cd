"""Converts ComfyUI's pixels (tensors in [0, 1]) to PIL images, as diffusers uses them."""

from __future__ import annotations

import torch
from PIL import Image

from ..errors import InvalidParameter, NotFinite

CURE = (
    "Load the model with precision fp32 or bf16 instead of fp16, and take LoRAs and ControlNets out one by one: a "
    "damaged file has this effect too."
)
WITH_ALPHA, MOST_CHANNELS = (2, 4), 4
"""Numbers of channels of which the last is opacity."""
LEAST, LARGEST = -0.5, 2.0
"""Values beyond these are no overshooting of a filter: they are of another scale (0 to 255, -1 to 1)."""


def as_image(pixels: torch.Tensor) -> Image.Image:
    """Pixels (H, W, 3) or (H, W) in [0, 1] as an image with 8 bits per channel, the usual input of diffusers.

    A tensor of the same colours would get another memory layout in the pipelines, and convolutions would round
    differently.
    """
    return Image.fromarray(pixels.clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy())


def as_images(images: torch.Tensor) -> list[Image.Image]:
    """Images (B, H, W, C) in [0, 1] as PIL images, rounded as in diffusers (ComfyUI's SaveImage truncates).

    Four channels are RGBA, as in SaveImage, and two grey with transparency; anything else is RGB. Raises NotFinite for
    what would be black.
    """
    check_finite(images, "the images")
    channels = rgb(images)
    if images.shape[-1] in WITH_ALPHA:
        channels = torch.cat([channels, images[..., -1:]], dim=-1)
    pixels = (channels.cpu().float().clamp(0, 1).numpy() * 255).round().astype("uint8")
    return [Image.fromarray(frame) for frame in pixels]


def rgb(images: torch.Tensor) -> torch.Tensor:
    """The colours (B, H, W, 3) of images (B, H, W, C): grey ones have one channel, or two with transparency.

    Raises InvalidParameter or NotFinite for what is no image.
    """
    check_images(images)
    if images.shape[-1] >= 3:
        return images[..., :3]
    return images[..., :1].expand(*images.shape[:-1], 3)


def check_images(images: torch.Tensor) -> None:
    """Raise InvalidParameter for what is no IMAGE, NotFinite for values that are no numbers: both would be misread."""
    shape = tuple(images.shape) if isinstance(images, torch.Tensor) else ()
    if len(shape) != 4 or not 1 <= shape[-1] <= MOST_CHANNELS:
        held = f"has the shape {shape}" if shape else f"is no tensor ({type(images).__name__})"
        raise InvalidParameter(
            "image",
            f"the image {held}, and images are (batch, height, width, channels) with 1 to {MOST_CHANNELS} channels; "
            "link a node that makes images",
        )
    if 0 in shape:
        raise InvalidParameter("image", f"there is no image: the shape is {shape}; look at the node that selects it")
    check_scale(images, "image")
    check_finite(images, "the images", "Look at the node that made them.")


def check_scale(values: torch.Tensor, what: str) -> None:
    """Raise InvalidParameter for values of another scale than 0 to 1."""
    if not values.is_floating_point():
        kind = str(values.dtype).removeprefix("torch.")
        raise InvalidParameter(
            what, f"the {what} holds {kind} values, and it takes fractions from 0 to 1; look at the node that made it"
        )
    if not bool((((values >= LEAST) & (values <= LARGEST)) | values.isnan()).all()):
        low, high = (float(one) for one in values[~values.isnan()].aminmax())
        raise InvalidParameter(
            what,
            f"the {what} has values from {low:g} to {high:g}, and it takes 0 to 1; scale them in the node that made it",
        )


def alpha_of(images: torch.Tensor) -> torch.Tensor | None:
    """The opacity (B, H, W, 1) of images (B, H, W, C); None if they have none, or all is opaque."""
    if images.shape[-1] not in WITH_ALPHA or bool((images[..., -1:] >= 1).all()):
        return None
    return images[..., -1:]


def unused_alpha(images: torch.Tensor, remedy: str = "") -> list[str]:
    """A warning for a node that uses only the colours of images (B, H, W, C)."""
    return [] if alpha_of(images) is None else [f"the image's transparency is not used{remedy}"]


def check_finite(values: torch.Tensor, what: str, remedy: str = "") -> None:
    """Raise NotFinite if ``values`` holds NaN or infinity, which would become a black image."""
    if not bool(torch.isfinite(values).all()):
        raise NotFinite(
            f"{what} hold values that are not numbers (NaN or infinity), so the image would be black. {remedy or CURE}"
        )
