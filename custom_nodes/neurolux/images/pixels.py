"""Converts ComfyUI's pixels (tensors in [0, 1]) to PIL images, as diffusers uses them."""

from __future__ import annotations

import torch
from PIL import Image


def as_image(pixels: torch.Tensor) -> Image.Image:
    """Pixels (H, W, 3) or (H, W) in [0, 1] as an image with 8 bits per channel, the usual input of diffusers.

    A tensor of the same colours would get another memory layout in the pipelines, and convolutions would round
    differently.
    """
    return Image.fromarray(pixels.clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy())


def as_images(images: torch.Tensor) -> list[Image.Image]:
    """Images (B, H, W, C) in [0, 1] as PIL images, rounded as in diffusers (ComfyUI's SaveImage truncates)."""
    pixels = (images.cpu().float().clamp(0, 1).numpy() * 255).round().astype("uint8")
    return [Image.fromarray(frame).convert("RGB") for frame in pixels]
