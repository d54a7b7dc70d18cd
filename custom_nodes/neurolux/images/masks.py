"""Masks that select the part of an image to redraw. 1 is redrawn, 0 is kept to the bit, values between are blended.

A mask image says it in one of three ways: white on black; black or any image with a transparent hole, which is how
OpenAI's API is sent masks; or white painted on a transparent ground.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from ..errors import InvalidParameter
from .pixels import WITH_ALPHA, alpha_of, check_finite, check_scale, rgb

BLACK = 0.02
"""Values below this count as black, because black in a JPEG is not exactly 0."""


BLACK_OR_WHITE = 0.95
"""If at least this share of the visible pixels is black or white, they were painted as a mask."""
EDGE = 0.5
"""Alpha from which a pixel of the border counts as opaque."""


@dataclass(frozen=True)
class ReadMask:
    """A mask (B, H, W), and what the user should know of how it was read."""

    mask: torch.Tensor
    warnings: tuple[str, ...] = ()


def mask_from(
    image: torch.Tensor | None,
    transparency: torch.Tensor | None,
    feather: int,
    invert: bool = False,
    image_transparency: torch.Tensor | None = None,
) -> ReadMask:
    """The mask from a mask image (B, H, W, C), else from the transparency of the image to change (B, H, W).

    ``image_transparency``: that of the mask image, 1 where it is transparent; a fourth channel is its alpha.
    Raises InvalidParameter if there is neither, if nothing would be redrawn, or if a mask image is all transparent.
    """
    warnings: list[str] = []
    if image is not None:
        colours = rgb(image).float().cpu()
        white = colours.mean(dim=-1)
        alpha = mask_alpha(image, image_transparency)
        if alpha is None:
            mask = white
        else:
            read = [mask_with_alpha(colours[i], alpha[i]) for i in range(len(image))]
            mask = torch.stack([one for one, _ in read])
            warnings = list(dict.fromkeys(warning for _, warning in read if warning))
        if transparency is not None and transparency.any():
            warnings.append("the image's own transparency is not used, because there is a mask image")
    elif transparency is not None:
        mask = as_mask(transparency)
    else:
        raise InvalidParameter("mask", "there is no mask; send one (white is redrawn), or an image with transparency")
    mask = torch.where(mask < BLACK, 0.0, mask.clamp(0, 1)).cpu()
    if invert:
        mask = 1 - mask
    check_mask(mask)
    return ReadMask(feathered(mask, feather), tuple(warnings))


def mask_alpha(image: torch.Tensor, transparency: torch.Tensor | None) -> torch.Tensor | None:
    """The alpha (B, H, W) of mask images; None if all of it is opaque.

    A transparency of another size belongs to another image: LoadImage gives 64x64 zeros for an image without alpha.
    """
    if image.shape[-1] in WITH_ALPHA:
        alpha = image[..., -1].float().cpu()
    elif transparency is None or not transparency.any():
        return None
    else:
        given = as_mask(transparency)
        if given.shape[-2:] != image.shape[1:3]:
            raise InvalidParameter(
                "mask_transparency",
                f"the mask image is {image.shape[2]}x{image.shape[1]} and its transparency "
                f"{given.shape[2]}x{given.shape[1]}; link both from the same node",
            )
        alpha = 1 - given[torch.arange(len(image)) % len(given)]
    return None if (alpha >= 1).all() else alpha.clamp(0, 1)


def mask_with_alpha(colours: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor, str]:
    """The mask (H, W) of a mask image (H, W, 3) that is partly transparent, and a warning where that is a guess."""
    visible = alpha >= BLACK
    if not visible.any():
        raise InvalidParameter(
            "mask",
            "the mask image is transparent everywhere, which can mean all or nothing; send white where the image is to "
            "be redrawn and black where it is kept",
        )
    if (alpha > 1 - BLACK).all():
        return colours.mean(dim=-1), ""  # nothing that anyone would see as transparent
    seen = colours[visible]
    if (seen >= 1 - BLACK).all():
        border = torch.cat([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        if (border >= EDGE).float().mean() >= EDGE:
            return 1 - alpha, (
                "the mask is white with a transparent part: its transparent part is redrawn. If its white part was "
                "meant, send white on black"
            )
        return alpha, (
            "the mask is white on a transparent ground: its white part is redrawn. If its transparent part was meant, "
            "send white on black"
        )
    painted = ((seen < BLACK) | (seen >= 1 - BLACK)).all(dim=-1) & (seen.amax(dim=-1) - seen.amin(dim=-1) < BLACK)
    if painted.float().mean() >= BLACK_OR_WHITE and (seen >= 1 - BLACK).any():
        return colours.mean(dim=-1) * alpha, (
            "the mask is black and white with a transparent part: its white part is redrawn, its transparent part is "
            "kept. If that was not meant, send white on black"
        )
    neutral = (seen.amax(dim=-1) - seen.amin(dim=-1) < BLACK).all()
    if neutral and seen.amax() - seen.amin() >= BLACK:  # a photo in grey, or a soft mask
        return 1 - alpha, (
            "the mask has greys and a transparent part: its transparent part is redrawn. If its bright part was meant, "
            "send it without transparency"
        )
    return 1 - alpha, ""


def as_mask(mask: torch.Tensor) -> torch.Tensor:
    """A MASK as (B, H, W) on the CPU, float32. One image may come without a batch, and a dimension of one channel.

    Raises InvalidParameter or NotFinite for what is no mask: it would select something else than was meant.
    """
    shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else ()
    if len(shape) == 4 and 1 in (shape[1], shape[3]):
        mask = mask[:, 0] if shape[1] == 1 else mask[..., 0]
    elif len(shape) not in (2, 3):
        held = f"has the shape {shape}" if shape else f"is no tensor ({type(mask).__name__})"
        raise InvalidParameter(
            "mask", f"the mask {held}, and masks are (batch, height, width); link a node that makes masks"
        )
    if 0 in shape:
        raise InvalidParameter("mask", f"there is no mask: the shape is {shape}; look at the node that selects it")
    mask = mask.float() if mask.dtype == torch.bool else mask
    check_scale(mask, "mask")
    check_finite(mask, "the masks", "Look at the node that made them.")
    return mask.reshape(-1, *mask.shape[-2:]).detach().float().cpu()


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
