"""The latent that an image begins with."""

from __future__ import annotations

import torch

from ..catalog.models import Model

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
