"""The LATENT that an image begins with: empty, or made of an image.

Beside ``samples`` and ``noise_mask``, which stock nodes know, the LATENT of an image carries the pixels it was made of:
diffusers' pipelines draw the encoded image from a distribution, with the seed, so they have to encode it themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..catalog.models import Model
from ..images.control_images import fitted_batch
from ..images.frames import Frame, cycled, extent, resized

LATENT_SCALE = 8
"""Pixels to a latent pixel in ComfyUI's LATENT (Empty Latent Image divides by it)."""
CHANNELS = 4
"""As Empty Latent Image makes it. Of an empty latent only the size is read."""


def empty_latent(model: Model, width: int, height: int, count: int) -> torch.Tensor:
    """Zeros (count, 4, height / 8, width / 8); a side of 0 is the model's default. Raises InvalidParameter."""
    width, height = width or model.defaults.width, height or model.defaults.height
    model.limits.width.check("width", width)
    model.limits.height.check("height", height)
    return torch.zeros(count, CHANNELS, height // LATENT_SCALE, width // LATENT_SCALE)


@dataclass(frozen=True, eq=False)
class ImageOrigin:
    """What a LATENT was made of, so that the finished image can be put back where it came from."""

    samples: torch.Tensor
    """The latent as it was made. A LATENT whose ``samples`` are others was changed since: its image is outdated."""
    original: torch.Tensor
    """The images as they were given, (B, H, W, 3)."""
    mask: torch.Tensor | None
    """The mask as it was given, (B, H, W); None: everything is redrawn."""
    frame: Frame


def current_origin(latent: Mapping[str, Any]) -> ImageOrigin | None:
    """What ``latent`` was made of; None where it was not made of an image, or was changed since."""
    origin = latent.get("image_origin")
    return origin if origin is not None and origin.samples is latent["samples"] else None


def put_back(images: torch.Tensor, origin: ImageOrigin) -> torch.Tensor:
    """Finished images (B, H, W, 3) in the place and the size of the ones they were made of.

    A pixel whose mask is 0 is the original's own, to the bit; between 0 and 1 the two are mixed.
    """
    frame = origin.frame
    left, top, right, bottom = frame.place
    inside = resized(images[..., :3].float().cpu()[:, top:bottom, left:right], extent(frame.part))
    original = cycled(origin.original, len(inside))
    result = original.clone()
    left, top, right, bottom = frame.part
    if origin.mask is None:
        result[:, top:bottom, left:right] = inside
        return result
    share = cycled(origin.mask, len(inside))[:, top:bottom, left:right, None]
    old = original[:, top:bottom, left:right]
    result[:, top:bottom, left:right] = torch.where(share > 0, old + (inside - old) * share, old)
    return result


def fitted_to_latent(images: torch.Tensor, latent: Mapping[str, Any] | None) -> torch.Tensor:
    """``images`` (B, H, W, C) as ``fitted`` brings them to the size of ``latent``; as they are where there is none."""
    if latent is None:
        return images[..., :3]
    height, width = latent["samples"].shape[-2:]
    origin = current_origin(latent)
    return fitted_batch(images, width * LATENT_SCALE, height * LATENT_SCALE, origin.frame if origin else None)
