"""Control images: each brought to the size of the image that it guides, and over the same things in it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from .frames import Frame, fitted_image, resized
from .pixels import as_image


def fitted(images: torch.Tensor, index: int, width: int, height: int, frame: Frame | None = None) -> Image.Image:
    """The control image of image ``index`` of a batch, of ``images`` (B, H, W, 3) in [0, 1], at width x height.

    It is cut to that shape around its middle, then resized; at the right size nothing changes. ``frame``: how the
    image that is redrawn was brought to that size. A control image with its proportions goes the same way, so that
    an outline stays on what it was drawn from. A batch goes round: image 5 of 6 takes the first of four.
    """
    pixels = images[index % images.shape[0]]
    size = (pixels.shape[1], pixels.shape[0])
    if frame is not None and size != (width, height) and same_proportions(size, frame.given):
        return in_frame(pixels, frame)
    image = as_image(pixels)
    scale = min(image.width / width, image.height / height)
    cut_width, cut_height = min(round(width * scale), image.width), min(round(height * scale), image.height)
    left, top = (image.width - cut_width) // 2, (image.height - cut_height) // 2
    cut = image.crop((left, top, left + cut_width, top + cut_height))
    return cut.resize((width, height), Image.Resampling.LANCZOS) if cut.size != (width, height) else cut


def fitted_batch(images: torch.Tensor, width: int, height: int, frame: Frame | None = None) -> torch.Tensor:
    """All of ``images`` (B, H, W, C) as ``fitted`` makes them: (B, height, width, 3) in [0, 1], 8 bits a channel."""
    pixels = images[..., :3].float().cpu()
    prepared_images = [fitted(pixels, index, width, height, frame) for index in range(len(pixels))]
    return torch.stack([torch.from_numpy(np.asarray(image, dtype=np.float32) / 255) for image in prepared_images])


def same_proportions(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether an image of ``size`` is one of ``other`` scaled, its sides rounded."""
    across, down = size[0] * other[1] / other[0], size[1] * other[0] / other[1]
    return abs(across - size[1]) < 1 or abs(down - size[0]) < 1


def in_frame(pixels: torch.Tensor, frame: Frame) -> Image.Image:
    """``pixels`` (H, W, 3), which show what the image shows that ``frame`` was made for, in that frame."""
    return as_image(fitted_image(resized(pixels[None], frame.given), frame)[0])
