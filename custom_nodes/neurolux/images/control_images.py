"""Control images: resized to the generated image, and aligned with the input image."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from .frames import Frame, fitted_image, resized, same_proportions
from .pixels import as_image, rgb


def fitted(images: torch.Tensor, index: int, width: int, height: int, frame: Frame | None = None) -> Image.Image:
    """The control image of image ``index`` of a batch, of ``images`` (B, H, W, 3) in [0, 1], at width x height.

    It is centre-cropped to that aspect ratio, then resized. An image of the right size does not change. ``frame``: how
    the input image was fitted to that size. A control image with the same proportions is fitted in the same way, so
    outlines stay aligned with their subject. Indices wrap around: with four control images, image 5 takes the first.
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
    """All ``images`` (B, H, W, C) after ``fitted``: (B, height, width, 3) in [0, 1], rounded to 8 bits per channel."""
    pixels = rgb(images).float().cpu()
    prepared_images = [fitted(pixels, index, width, height, frame) for index in range(len(pixels))]
    return torch.stack([torch.from_numpy(np.asarray(image, dtype=np.float32) / 255) for image in prepared_images])


def in_frame(pixels: torch.Tensor, frame: Frame) -> Image.Image:
    """``pixels`` (H, W, 3) with the proportions of the image that ``frame`` was planned for, fitted like that image."""
    return as_image(fitted_image(resized(pixels[None], frame.given), frame)[0])
