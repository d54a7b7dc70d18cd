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
from ..families.registry import family_of
from ..images.control_images import fitted_batch
from ..images.frames import Frame, cycled, extent, resized

STOCK_SCALE = 8
"""Pixels to a latent pixel where a LATENT does not say: Empty Latent Image divides by it."""


def empty_latent(model: Model, width: int, height: int, count: int) -> torch.Tensor:
    """Zeros in the geometry of the model's family; a side of 0 is the model's default. Raises InvalidParameter."""
    width, height = width or model.defaults.width, height or model.defaults.height
    model.limits.width.check("width", width)
    model.limits.height.check("height", height)
    space = family_of(model.family).latent
    return torch.zeros(count, space.channels, height // space.scale, width // space.scale)


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
    origin = current_origin(latent)
    if origin is not None:
        return fitted_batch(images, *origin.frame.size, origin.frame)
    height, width = latent["samples"].shape[-2:]
    return fitted_batch(images, width * STOCK_SCALE, height * STOCK_SCALE)
