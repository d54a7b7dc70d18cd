"""An image fitted to what a model takes: cut, padded, stretched or scaled."""

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
"""A larger image is scaled to so many times the pixels of the model's default size, unless a size is asked for."""
Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class Frame:
    """How an image was fitted: ``part`` of the given image became ``place`` of the model's image."""

    given: tuple[int, int]
    """Width and height of the image as it was given."""
    size: tuple[int, int]
    """Width and height that the model works in."""
    part: Box
    """The pixels of the given image that are in the model's."""
    place: Box
    """Where they are there; around it the image's edge is repeated."""

    @property
    def unchanged(self) -> bool:
        """Whether nothing was done."""
        return self.given == self.size and self.part == self.place == (0, 0, *self.size)

    def summary(self) -> str | None:
        """What was done, for whoever sent the image; None where nothing was."""
        if self.unchanged:
            return None
        width, height = self.given
        done = []
        cut, inside = extent(self.part), extent(self.place)
        if cut != self.given:
            done.append(f"cut to {cut[0]}x{cut[1]}")
        if cut != inside:
            done.append(f"scaled to {inside[0]}x{inside[1]}")
        if inside != self.size:
            done.append(f"padded to {self.size[0]}x{self.size[1]}")
        return f"the image of {width}x{height} was {', '.join(done)} to suit the model"


def extent(box: Box) -> tuple[int, int]:
    """Width and height of a box."""
    return box[2] - box[0], box[3] - box[1]


def plan_frame(model: Model, given: tuple[int, int], fit: str, width: int = 0, height: int = 0) -> Frame:
    """How an image of ``given`` (width, height) is fitted. A side of 0 follows from the image's own size.

    Raises InvalidParameter for a size that the model does not take, and for an image that would have to be changed
    where ``fit`` is ``error``.
    """
    if fit not in FIT_CHOICES:
        raise InvalidParameter("fit", f"unknown fit {fit!r}; use {', '.join(FIT_CHOICES)}")
    limits = model.limits
    scale = wanted_scale(model, given, fit, width, height)
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


def wanted_scale(model: Model, given: tuple[int, int], fit: str, width: int, height: int) -> float:
    """By how much the image is scaled before it is cut or padded: to the sides asked for, else to what suits."""
    asked = [wanted / side for wanted, side in zip((width, height), given, strict=True) if wanted]
    if asked:
        return min(asked) if fit == "pad" else max(asked)
    limits = (model.limits.width, model.limits.height)
    least = max(limit.minimum / side for limit, side in zip(limits, given, strict=True))
    most = min(limit.maximum / side for limit, side in zip(limits, given, strict=True))
    likes = (MOST_PIXELS * model.defaults.width * model.defaults.height / (given[0] * given[1])) ** 0.5
    wanted = min(1.0, most, max(likes, least))
    return max(least, wanted) if fit == "crop" else min(most, max(wanted, least))


def size_in_pixels(model: Model, given: tuple[int, int]) -> tuple[int, int]:
    """A size in the proportions of ``given`` (width, height) with about the pixels of the model's default size."""
    scale = (model.defaults.width * model.defaults.height / (given[0] * given[1])) ** 0.5
    limits = (model.limits.width, model.limits.height)
    width, height = (on_grid(side * scale, limit, "stretch") for side, limit in zip(given, limits, strict=True))
    return width, height


def on_grid(pixels: float, limit: SizeLimit, fit: str) -> int:
    """A side near ``pixels`` that the model takes: the next one below for a cut, above for padding."""
    grid = limit.multiple_of
    steps = pixels / grid
    nearest = {"crop": floor(steps + 1e-6), "pad": ceil(steps - 1e-6)}.get(fit, floor(steps + 0.5)) * grid
    return min(max(nearest, ceil(limit.minimum / grid) * grid), limit.maximum // grid * grid)


def middle(outer: tuple[int, int], inner: tuple[int, int]) -> Box:
    """A box of size ``inner`` in the middle of one of size ``outer``."""
    left, top = (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2
    return left, top, left + inner[0], top + inner[1]


def fitted_image(images: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Images (B, H, W, 3) in [0, 1] as ``frame`` says; what needs no change stays as it is to the bit."""
    left, top, right, bottom = frame.part
    inside = resized(images[:, top:bottom, left:right], extent(frame.place))
    return padded(inside.movedim(-1, 1), frame, "replicate").movedim(1, -1).contiguous()


def fitted_mask(mask: torch.Tensor, frame: Frame) -> torch.Tensor:
    """A mask (B, H, W) as ``frame`` says; padding is not masked."""
    left, top, right, bottom = frame.part
    inside = resized(mask[:, top:bottom, left:right, None], extent(frame.place), Image.Resampling.BILINEAR)
    return padded(inside.movedim(-1, 1), frame, "constant")[:, 0].contiguous()


def padded(pixels: torch.Tensor, frame: Frame, how: str) -> torch.Tensor:
    """``pixels`` (B, C, h, w) at their place in the model's image."""
    left, top, right, bottom = frame.place
    around = (left, frame.size[0] - right, top, frame.size[1] - bottom)
    return torch.nn.functional.pad(pixels, around, mode=how) if any(around) else pixels


def resized(
    pixels: torch.Tensor, size: tuple[int, int], how: Image.Resampling = Image.Resampling.LANCZOS
) -> torch.Tensor:
    """``pixels`` (B, H, W, C) in [0, 1] at ``size`` (width, height), each channel by Pillow in 32-bit floats."""
    if (pixels.shape[2], pixels.shape[1]) == size:
        return pixels
    frames = [
        np.stack([np.asarray(Image.fromarray(channel).resize(size, how)) for channel in frame], axis=-1)
        for frame in pixels.movedim(-1, 1).float().cpu().numpy()
    ]
    return torch.from_numpy(np.stack(frames)).clamp(0, 1)


def same_size(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A mask (B, H, W) in [0, 1], resized to (width, height)."""
    mask = mask.reshape(-1, *mask.shape[-2:]).detach().float().cpu().clamp(0, 1)
    return resized(mask[..., None], size, Image.Resampling.BILINEAR)[..., 0]


def cycled(values: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` of ``values``, from the first again where there are fewer."""
    return torch.cat([values[index % len(values)][None] for index in range(count)])
