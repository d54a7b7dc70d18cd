"""What LoRAs and ControlNets add to a plan: told from the shapes of their tensors, or from their sizes. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .records import CONTROLNET, ComponentShape

Shapes = Mapping[str, tuple[int, ...]]
"""Shape by tensor name."""
SDXL_VALUES_PER_TOKEN = 64 * 256
"""An SDXL ControlNet hands 64 values for each pixel to the UNet, with guidance; a token is 16x16 pixels."""
FLUX_LAYERS, FLUX_WIDTH = 15, 3072
"""Of the FLUX ControlNets that are around (InstantX and Shakker-Labs: 5 double and 10 single blocks)."""
PUBLISHED_BLOCKS = {"flux": FLUX_LAYERS, "sdxl": 40}
"""Blocks of a ControlNet whose file is not at hand, taken as equal: SDXL's is half a UNet, most of it in 40 parts."""
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
    parameters, blocks = sum(math.prod(shape) for shape in header.values()), block_sizes(header)
    if family != "flux":
        return ComponentShape(parameters, blocks, values_per_token=SDXL_VALUES_PER_TOKEN)
    layers = numbers(header, "controlnet_blocks.") + numbers(header, "controlnet_single_blocks.")
    width = header.get("x_embedder.weight", (FLUX_WIDTH,))[0]
    hint = any(name.startswith("input_hint_block.") for name in header)  # such a one reads the image, not its latent
    return ComponentShape(parameters, blocks, values_per_token=(layers or FLUX_LAYERS) * width, needs_vae=not hint)


def block_sizes(header: Shapes) -> tuple[int, ...]:
    """Parameters of each block that can be streamed, in the file's order, which is about the order of use."""
    sizes: dict[str, int] = {}
    for name, shape in header.items():
        block = BLOCK.match(name)
        if block is not None:
            sizes[block[0]] = sizes.get(block[0], 0) + math.prod(shape)
    return tuple(sizes.values())


def published_control_shape(size: int, family: str) -> ComponentShape:
    """A ControlNet of which only the bytes are known."""
    parameters, count = size // PUBLISHED_BYTES, PUBLISHED_BLOCKS.get(family, 1)
    blocks = (parameters // count,) * count
    if family != "flux":
        return ComponentShape(parameters, blocks, values_per_token=SDXL_VALUES_PER_TOKEN)
    return ComponentShape(parameters, blocks, values_per_token=FLUX_LAYERS * FLUX_WIDTH, needs_vae=True)


def numbers(header: Shapes, prefix: str) -> int:
    """How many numbered children ``prefix`` has."""
    return len({name.removeprefix(prefix).split(".")[0] for name in header if name.startswith(prefix)})


def with_adapters(
    shapes: Mapping[str, ComponentShape], denoiser: str, controls: Sequence[ComponentShape] = (), lora_bytes: int = 0
) -> dict[str, ComponentShape]:
    """``shapes``, with ControlNets beside the ``denoiser`` and LoRAs of ``lora_bytes`` in its blocks."""
    found = dict(shapes)
    if lora_bytes:
        found[denoiser] = replace(found[denoiser], lora_bytes=lora_bytes)
    found |= {control_name(index): control for index, control in enumerate(controls)}
    return found


def control_name(index: int) -> str:
    """What plans call ControlNet ``index``, counted from 0, files that come twice once."""
    return CONTROLNET if index == 0 else f"{CONTROLNET}_{index + 1}"
