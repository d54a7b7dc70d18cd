"""The block lists of a module that a test made itself."""

from __future__ import annotations

import torch
from neurolux.families.blocks import NO_BLOCKS, BlockLists
from neurolux.families.registry import all_parts


def lists_of(module: torch.nn.Module) -> BlockLists:
    """Those of the part that has lists where ``module`` has some."""
    names = {name for name, _ in module.named_modules()}
    return next((part.blocks for part in all_parts() if names.intersection(part.blocks.lists)), NO_BLOCKS)
