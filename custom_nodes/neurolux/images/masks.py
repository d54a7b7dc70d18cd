"""Masks that select the part of an image to redraw. 1 is redrawn, 0 is kept to the bit, values between are blended."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from ..errors import InvalidParameter
from .pixels import alpha_of, rgb

BLACK = 0.02
"""Values below this count as black, because black in a JPEG is not exactly 0."""


def mask_from(
    image: torch.Tensor | None, transparency: torch.Tensor | None, feather: int, invert: bool = False
) -> torch.Tensor:
    """The mask (B, H, W) from a mask image (B, H, W, C), else from the transparency of an image (B, H, W).

    Raises InvalidParameter if there is neither, or if nothing would be redrawn.
    """
    if image is not None:
        mask = rgb(image).float().mean(dim=-1)
    elif transparency is not None:
        mask = transparency.reshape(-1, *transparency.shape[-2:]).float()
    else:
        raise InvalidParameter("mask", "there is no mask; send one (white is redrawn), or an image with transparency")
    mask = torch.where(mask < BLACK, 0.0, mask.clamp(0, 1)).cpu()
    if invert:
        mask = 1 - mask
    check_mask(mask)
    return feathered(mask, feather)


def check_mask(mask: torch.Tensor) -> None:
    """Raise InvalidParameter unless every mask of the batch has something to redraw."""
    if not all(one.any() for one in mask.reshape(-1, *mask.shape[-2:])):
        raise InvalidParameter(
            "mask",
            "nothing in the mask is white, so nothing would be redrawn; send a mask whose white part is to be redrawn, "
            "or an image that is transparent there",
        )


def feathered(mask: torch.Tensor, feather: int) -> torch.Tensor:
    """``mask`` (B, H, W), fading in from its edge over ``feather`` pixels, inwards.

    In a narrower part, the middle still reaches the full value. The border of the image does not count as an edge.
    """
    if feather <= 0:
        return mask
    return torch.stack([torch.from_numpy(ramp(one.numpy(), feather)) for one in mask]) * mask


def ramp(mask: np.ndarray, feather: int) -> np.ndarray:
    """Weights (H, W), float32, that rise from 0 at the edge of the masked area to 1 within ``feather`` pixels."""
    inside = mask > 0
    if inside.all():
        return np.ones(mask.shape, np.float32)
    distance = distance_transform_edt(inside)
    assert isinstance(distance, np.ndarray)
    return np.clip(distance / min(feather + 1, distance.max()), 0, 1).astype(np.float32)


def extended(images: torch.Tensor, added: tuple[int, int, int, int], feather: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, H, W, C) with (left, top, right, bottom) pixels added, and a mask of the added part.

    The added pixels repeat the edges, and are opaque. Raises InvalidParameter if nothing is added.
    """
    left, top, right, bottom = added
    if min(added) < 0:
        raise InvalidParameter("left", f"left, top, right and bottom are {added}; none may be below 0")
    if not any(added):
        raise InvalidParameter(
            "right", "left, top, right and bottom are all 0, so nothing would be added; set how many pixels to add"
        )
    around = (left, right, top, bottom)
    pixels = torch.nn.functional.pad(rgb(images).float().cpu().movedim(-1, 1), around, mode="replicate")
    alpha = alpha_of(images)
    if alpha is not None:
        alpha = torch.nn.functional.pad(alpha.float().cpu().movedim(-1, 1), around, value=1.0)
        pixels = torch.cat([pixels, alpha], dim=1)
    mask = torch.ones(1, *pixels.shape[-2:])
    mask[:, top : top + images.shape[1], left : left + images.shape[2]] = 0
    return pixels.movedim(1, -1).contiguous(), feathered(mask, feather)
