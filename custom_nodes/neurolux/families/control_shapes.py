"""How large a ControlNet is: by the shapes in its file, or by the bytes of a published one. No torch."""

from __future__ import annotations

import math
import re

from ..planning.records import ComponentShape
from ..weights.stamps import Shapes
from .registry import family_of

BLOCK = re.compile(
    r"(?:transformer_blocks|single_transformer_blocks)\.\d+\.|"
    r"(?:down_blocks\.\d+|mid_block)\.(?:resnets|attentions|downsamplers)\.\d+\.(?:transformer_blocks\.\d+\.)?|"
    r"control_model\.(?:input_blocks\.\d+|middle_block)\.\d+\.(?:transformer_blocks\.\d+\.)?"
)
"""What a block's tensors begin with in a ControlNet's file: diffusers' names, or those of its authors."""
PUBLISHED_BYTES = 2
"""A weight, in the files of ControlNets: bf16 or fp16."""


def control_shape(header: Shapes, family: str) -> ComponentShape:
    """A ControlNet by the shapes of its tensors."""
    controls = family_of(family).controls
    values, needs_vae = controls.planned(header) if controls is not None else (0, False)
    parameters = sum(math.prod(shape) for shape in header.values())
    return ComponentShape(parameters, block_sizes(header), values_per_token=values, needs_vae=needs_vae)


def block_sizes(header: Shapes) -> tuple[int, ...]:
    """Parameters of each block that can be streamed, in the file's order, which is about the order of use."""
    sizes: dict[str, int] = {}
    for name, shape in header.items():
        block = BLOCK.match(name)
        if block is not None:
            sizes[block[0]] = sizes.get(block[0], 0) + math.prod(shape)
    return tuple(sizes.values())


def published_control_shape(size: int, family: str) -> ComponentShape:
    """A ControlNet of which only the bytes are known; its blocks are taken as equal."""
    controls = family_of(family).controls
    count, values, needs_vae = controls.published if controls is not None else (1, 0, False)
    parameters = size // PUBLISHED_BYTES
    return ComponentShape(parameters, (parameters // count,) * count, values_per_token=values, needs_vae=needs_vae)
