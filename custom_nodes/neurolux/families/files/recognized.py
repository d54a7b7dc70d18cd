"""Recognizes families that the pack does not support, so errors can say what a file was made for."""

from __future__ import annotations

import re

from ...weights.stamps import Shapes
from ..parts.unet import SD2_TEXT_WIDTH, lora_widths
from ..spec import Detected

OTHERS = (
    (r"joint_blocks|joint_transformer_blocks", "sd3"),
    (r"(?:^|[._])blocks[._]\d+[._](self_attn|cross_attn|ffn)[._]", "wan"),
    (r"individual_token_refiner|\.img_attn_qkv", "hunyuan-video"),
)
"""Names that only the layers of one kind of model have."""
SD1_TEXT_WIDTH = 768


def recognized_lora(header: Shapes) -> Detected | None:
    """Recognize a LoRA for a model that the pack does not support; None for any other file."""
    for pattern, title in OTHERS:
        if any(re.search(pattern, name) for name in header):
            return Detected(title)
    widths = lora_widths(header) or set()
    return Detected("sd2") if SD2_TEXT_WIDTH in widths and SD1_TEXT_WIDTH not in widths else None
