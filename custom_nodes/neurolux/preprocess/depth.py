"""A depth map of an image: near is white, far is black, as depth ControlNets were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..memory.out_of_memory import with_memory_errors
from .networks import REMEDY, ImageProgress, acquire_network, at_work

FLAT = 1e-5
"""A map whose values differ by no more than this share of themselves shows no depth."""


def depth_maps(images: torch.Tensor, folder: Path) -> torch.Tensor:
    """Depth of each of ``images`` (B, H, W, 3) in [0, 1], as grey images of the same shape, float32 on the CPU.

    ``folder``: a transformers network for depth estimation whose values grow towards the viewer (Depth Anything).
    Each map is stretched over the whole range by itself. Raises WeightsMissing or OutOfMemory.
    """
    from transformers import AutoModelForDepthEstimation

    network = acquire_network(folder, AutoModelForDepthEstimation)
    progress = ImageProgress(images.shape[0])

    def work() -> torch.Tensor:
        with at_work([network]), torch.no_grad():
            return torch.stack([one(frame) for frame in images])

    def one(frame: torch.Tensor) -> torch.Tensor:
        progress.check()
        image = frame[..., :3].clamp(0, 1).mul(255).round().to(torch.uint8).permute(2, 0, 1).cpu()
        inputs = network.processor(images=image, return_tensors="pt").to(network.patcher.load_device)
        depth: Any = network.module(**inputs).predicted_depth
        progress.step()
        return stretched(depth[None].float().cpu(), frame.shape[0], frame.shape[1])

    return with_memory_errors("estimating depth", REMEDY, work)


def stretched(depth: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Depth (1, 1, h, w) over the whole of [0, 1], as a grey image (height, width, 3); a flat one is black."""
    if depth.max() - depth.min() <= FLAT * depth.abs().max():  # else its rounding would be stretched
        return torch.zeros(height, width, 3)
    depth = torch.nn.functional.interpolate(depth, (height, width), mode="bicubic", align_corners=False)[0, 0]
    low, high = depth.min(), depth.max()
    return ((depth - low) / (high - low))[..., None].expand(height, width, 3).contiguous()
