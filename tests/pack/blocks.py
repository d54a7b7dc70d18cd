"""Modules that a test made itself, and their block lists."""

from __future__ import annotations

import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Krea2Transformer2DModel,
    QwenImageTransformer2DModel,
    ZImageTransformer2DModel,
)
from neurolux.families.blocks import NO_BLOCKS, BlockLists
from neurolux.families.registry import all_parts


def lists_of(module: torch.nn.Module) -> BlockLists:
    """Those of the part that has lists where ``module`` has them: as many as possible, and as few others."""
    names = {name for name, _ in module.named_modules()}

    def fit(blocks: BlockLists) -> tuple[int, int]:
        present = names.intersection(blocks.lists)
        return len(present), len(present) - len(blocks.lists)

    found = max((part.blocks for part in all_parts()), key=fit, default=NO_BLOCKS)
    return found if fit(found)[0] else NO_BLOCKS


def shallow_flux() -> FluxTransformer2DModel:
    """FLUX dev with few of its blocks: one step takes the same room, because no block leaves anything behind."""
    return FluxTransformer2DModel(guidance_embeds=True, num_layers=2, num_single_layers=2)


def shallow_z_image() -> ZImageTransformer2DModel:
    """The same for Z-Image."""
    return ZImageTransformer2DModel(n_layers=2)


def shallow_klein() -> Flux2Transformer2DModel:
    """The same for FLUX.2 klein 9B."""
    return Flux2Transformer2DModel(
        num_layers=2, num_single_layers=2, num_attention_heads=32, joint_attention_dim=12288, guidance_embeds=False
    )


def shallow_qwen_image() -> QwenImageTransformer2DModel:
    """The same for Qwen-Image."""
    return QwenImageTransformer2DModel(num_layers=2)


def shallow_krea2() -> Krea2Transformer2DModel:
    """The same for Krea 2."""
    return Krea2Transformer2DModel(num_layers=2)
