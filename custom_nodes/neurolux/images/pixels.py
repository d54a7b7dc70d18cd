"""Pixels as ComfyUI has them (tensors in [0, 1]), as the images that diffusers and PIL have."""

from __future__ import annotations

import torch
from PIL import Image


def as_image(pixels: torch.Tensor) -> Image.Image:
    """Pixels (H, W, 3) or (H, W) in [0, 1] as an image of 8 bits a channel, which is what people give to diffusers.

    From a tensor of the same colours the pipelines make one that lies in memory otherwise, and convolutions then round
    otherwise.
    """
    return Image.fromarray(pixels.clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy())


def as_images(images: torch.Tensor) -> list[Image.Image]:
    """Images (B, H, W, C) in [0, 1] as PIL images, rounded as diffusers does (SaveImage truncates)."""
    pixels = (images.cpu().float().clamp(0, 1).numpy() * 255).round().astype("uint8")
    return [Image.fromarray(frame).convert("RGB") for frame in pixels]
