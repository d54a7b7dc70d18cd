"""Recognizes families that the pack does not support, so errors can say what a file was made for."""

from __future__ import annotations

from ..weights.stamps import Shapes
from .parts.unet import lora_widths
from .spec import Detected

SD2_TEXT_WIDTH, SD1_TEXT_WIDTH = 1024, 768


def recognized_lora(header: Shapes) -> Detected | None:
    """Recognize a LoRA for Stable Diffusion 2 or 3; None for any other file."""
    if any("joint_blocks" in name for name in header):
        return Detected("sd3")
    widths = lora_widths(header) or set()
    return Detected("sd2") if SD2_TEXT_WIDTH in widths and SD1_TEXT_WIDTH not in widths else None
