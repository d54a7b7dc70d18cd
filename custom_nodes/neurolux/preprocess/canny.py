"""The edges of images, as white lines on black."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import InvalidParameter
from .canny_filter import canny
from .networks import ImageProgress


def canny_images(images: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """White edges on black of each of ``images`` (B, H, W, 3) in [0, 1], same shape, float32 on the CPU.

    Gradients above ``high`` (of 8-bit pixels) are edges, and those above ``low`` that touch one. Raises
    InvalidParameter.
    """
    if low > high:
        raise InvalidParameter("low_threshold", f"low_threshold {low} is above high_threshold {high}; swap them")
    progress = ImageProgress(images.shape[0])
    made = []
    for frame in images[..., :3]:
        progress.check()
        edges = canny(frame.clamp(0, 1).mul(255).round().cpu().numpy().astype(np.int32), low, high)
        made.append(torch.from_numpy(edges.astype(np.float32))[..., None].repeat(1, 1, 3))
        progress.step()
    return torch.stack(made)
