"""The size of a ControlNet for planning: from the shapes in its file, or from the size of a published one. No torch."""

from __future__ import annotations

import math
import re

from ...planning.records import ComponentShape
from ...weights.stamps import Shapes
from ..registry import family_of

BLOCK = re.compile(
    r"(?:transformer_blocks|single_transformer_blocks)\.\d+\.|"
    r"(?:down_blocks\.\d+|mid_block)\.(?:resnets|attentions|downsamplers)\.\d+\.(?:transformer_blocks\.\d+\.)?|"
    r"control_model\.(?:input_blocks\.\d+|middle_block)\.\d+\.(?:transformer_blocks\.\d+\.)?"
)
"""The prefix of a block's tensors in the file of a ControlNet, with diffusers' names or the original ones."""
PUBLISHED_BYTES = 2
"""Bytes per weight in published files of ControlNets, which are in bf16 or fp16."""


def control_shape(header: Shapes, family: str) -> ComponentShape:
    """The shape of a ControlNet, from the shapes of its tensors."""
    controls = family_of(family).controls
    values, needs_vae = controls.planned(header) if controls is not None else (0, False)
    parameters = sum(math.prod(shape) for shape in header.values())
    return ComponentShape(parameters, block_sizes(header), values_per_token=values, needs_vae=needs_vae)


def block_sizes(header: Shapes) -> tuple[int, ...]:
    """Parameters of each block that can be streamed, in the order of the file, which is roughly execution order."""
    sizes: dict[str, int] = {}
    for name, shape in header.items():
        block = BLOCK.match(name)
        if block is not None:
            sizes[block[0]] = sizes.get(block[0], 0) + math.prod(shape)
    return tuple(sizes.values())


def published_control_shape(size: int, family: str) -> ComponentShape:
    """The shape of a ControlNet with only its size in bytes known. Assumes blocks of equal size."""
    controls = family_of(family).controls
    count, values, needs_vae = controls.published if controls is not None else (1, 0, False)
    parameters = size // PUBLISHED_BYTES
    return ComponentShape(parameters, (parameters // count,) * count, values_per_token=values, needs_vae=needs_vae)
