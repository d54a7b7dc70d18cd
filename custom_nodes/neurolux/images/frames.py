"""Fits an image to a size that a model accepts: by cropping, padding, stretching or scaling."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import torch
from PIL import Image

from ..catalog.limits import SizeLimit
from ..catalog.models import Model
from ..errors import InvalidParameter

FIT_CHOICES = ("crop", "pad", "stretch", "error")
MOST_PIXELS = 2
"""Without an explicit size, a larger image is scaled down to this multiple of the pixels of the default size."""
Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class Frame:
    """How an image is fitted: ``part`` of the input image becomes ``place`` in the model's image."""

    given: tuple[int, int]
    """Width and height of the input image."""
    size: tuple[int, int]
    """Width and height of the model's image."""
    part: Box
    """The part of the input image that is used."""
    place: Box
    """The place of that part in the model's image. Padding around it repeats the edge pixels."""

    @property
    def unchanged(self) -> bool:
        """Whether the image stays as it is."""
        return self.given == self.size and self.part == self.place == (0, 0, *self.size)

    def summary(self) -> str | None:
        """What changed, as text for the user; None if nothing did."""
        if self.unchanged:
            return None
        width, height = self.given
        done = []
        cut, inside = extent(self.part), extent(self.place)
        if cut != self.given:
            done.append(f"cropped to {cut[0]}x{cut[1]}")
        if cut != inside:
            done.append(f"scaled to {inside[0]}x{inside[1]}")
        if inside != self.size:
            done.append(f"padded to {self.size[0]}x{self.size[1]}")
        return f"the image of {width}x{height} was {', '.join(done)} to suit the model"


def extent(box: Box) -> tuple[int, int]:
    """Width and height of a box."""
    return box[2] - box[0], box[3] - box[1]


def plan_frame(model: Model, given: tuple[int, int], fit: str, width: int = 0, height: int = 0) -> Frame:
    """How to fit an image of size ``given`` (width, height). A side of 0 follows from the image's own size.

    Raises InvalidParameter for a size that the model does not accept. With ``fit`` "error", raises it for any image
    that would have to be changed.
    """
    if fit not in FIT_CHOICES:
        raise InvalidParameter("fit", f"unknown fit {fit!r}; use {', '.join(FIT_CHOICES)}")
    limits = model.limits
    scale = choose_scale(model, given, fit, width, height)
    size = (
        width or on_grid(given[0] * scale, limits.width, fit),
        height or on_grid(given[1] * scale, limits.height, fit),
    )
    limits.width.check("width", size[0])
    limits.height.check("height", size[1])
    whole, full = (0, 0, *given), (0, 0, *size)
    if fit == "error" and size != given:
        raise InvalidParameter(
            "image",
            f"the image is {given[0]}x{given[1]} and {model.name} would work in {size[0]}x{size[1]}; "
            "send it in that size, or set fit to crop, pad or stretch",
        )
    if fit == "crop":
        scale = max(scale, size[0] / given[0], size[1] / given[1])
        cut = (min(given[0], round(size[0] / scale)), min(given[1], round(size[1] / scale)))
        return Frame(given, size, middle(given, cut), full)
    if fit == "pad":
        scale = min(scale, size[0] / given[0], size[1] / given[1])
        inside = (max(1, round(given[0] * scale)), max(1, round(given[1] * scale)))
        return Frame(given, size, whole, middle(size, inside))
    return Frame(given, size, whole, full)


def choose_scale(model: Model, given: tuple[int, int], fit: str, width: int, height: int) -> float:
    """The factor to scale the image by before it is cropped or padded: from the requested sides, else from the limits
    and the default size of the model."""
    asked = [target / side for target, side in zip((width, height), given, strict=True) if target]
    if asked:
        return min(asked) if fit == "pad" else max(asked)
    limits = (model.limits.width, model.limits.height)
    least = max(limit.minimum / side for limit, side in zip(limits, given, strict=True))
    most = min(limit.maximum / side for limit, side in zip(limits, given, strict=True))
    preferred = (MOST_PIXELS * model.defaults.width * model.defaults.height / (given[0] * given[1])) ** 0.5
    scale = min(1.0, most, max(preferred, least))
    return max(least, scale) if fit == "crop" else min(most, max(scale, least))


def size_in_pixels(model: Model, given: tuple[int, int]) -> tuple[int, int]:
    """A size with the proportions of ``given`` (width, height) and about as many pixels as the default size."""
    scale = (model.defaults.width * model.defaults.height / (given[0] * given[1])) ** 0.5
    limits = (model.limits.width, model.limits.height)
    width, height = (on_grid(side * scale, limit, "stretch") for side, limit in zip(given, limits, strict=True))
    return width, height


def on_grid(pixels: float, limit: SizeLimit, fit: str) -> int:
    """A side near ``pixels`` that the model accepts: rounded down for ``crop``, up for ``pad``, else to the nearest."""
    grid = limit.multiple_of
    steps = pixels / grid
    nearest = {"crop": floor(steps + 1e-6), "pad": ceil(steps - 1e-6)}.get(fit, floor(steps + 0.5)) * grid
    return min(max(nearest, ceil(limit.minimum / grid) * grid), limit.maximum // grid * grid)


def middle(outer: tuple[int, int], inner: tuple[int, int]) -> Box:
    """A box of size ``inner``, centred in one of size ``outer``."""
    left, top = (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2
    return left, top, left + inner[0], top + inner[1]


def fitted_image(images: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Images (B, H, W, 3) in [0, 1], fitted by ``frame``. Without a change in size, they stay identical to the bit."""
    left, top, right, bottom = frame.part
    inside = resized(images[:, top:bottom, left:right], extent(frame.place))
    return padded(inside.movedim(-1, 1), frame, "replicate").movedim(1, -1).contiguous()


def fitted_mask(mask: torch.Tensor, frame: Frame) -> torch.Tensor:
    """A mask (B, H, W), fitted by ``frame``. Padding is 0, not masked."""
    left, top, right, bottom = frame.part
    inside = resized(mask[:, top:bottom, left:right, None], extent(frame.place), Image.Resampling.BILINEAR)
    return padded(inside.movedim(-1, 1), frame, "constant")[:, 0].contiguous()


def padded(pixels: torch.Tensor, frame: Frame, how: str) -> torch.Tensor:
    """``pixels`` (B, C, h, w), padded to the size of the model's image."""
    left, top, right, bottom = frame.place
    around = (left, frame.size[0] - right, top, frame.size[1] - bottom)
    return torch.nn.functional.pad(pixels, around, mode=how) if any(around) else pixels


def resized(
    pixels: torch.Tensor, size: tuple[int, int], how: Image.Resampling = Image.Resampling.LANCZOS
) -> torch.Tensor:
    """``pixels`` (B, H, W, C) in [0, 1], resized to ``size`` (width, height) by Pillow, in 32-bit float channels."""
    if (pixels.shape[2], pixels.shape[1]) == size:
        return pixels
    frames = [
        np.stack([np.asarray(Image.fromarray(channel).resize(size, how)) for channel in frame], axis=-1)
        for frame in pixels.movedim(-1, 1).float().cpu().numpy()
    ]
    return torch.from_numpy(np.stack(frames)).clamp(0, 1)


def same_proportions(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether ``size`` is ``other`` scaled, up to rounding of the sides."""
    across, down = size[0] * other[1] / other[0], size[1] * other[0] / other[1]
    return abs(across - size[1]) < 1 or abs(down - size[0]) < 1


def mask_warnings(mask: torch.Tensor, size: tuple[int, int], count: int) -> list[str]:
    """What is done to masks (B, h, w) to make them those of ``count`` images of ``size`` (width, height)."""
    given, masks = (mask.shape[-1], mask.shape[-2]), mask.numel() // (mask.shape[-1] * mask.shape[-2])
    found = []
    if not same_proportions(given, size):
        found.append(f"the mask of {given[0]}x{given[1]} was stretched to the proportions of {size[0]}x{size[1]}")
    if 1 < masks < count:
        found.append(f"there are {masks} masks for {count} images: they are used in turn")
    return found


def same_size(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A mask (B, H, W) in [0, 1], resized to (width, height)."""
    mask = mask.reshape(-1, *mask.shape[-2:]).detach().float().cpu().clamp(0, 1)
    return resized(mask[..., None], size, Image.Resampling.BILINEAR)[..., 0]


def cycled(values: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` of ``values``, repeated from the first if there are fewer."""
    return torch.cat([values[index % len(values)][None] for index in range(count)])
