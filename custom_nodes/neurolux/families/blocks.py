"""Describes where a component keeps its sequential blocks, so they can be streamed. Names only, no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

LEVEL_PARTS = ("resnets", "attentions", "downsamplers", "upsamplers")
"""The lists inside one level of a UNet."""


@dataclass(frozen=True)
class BlockLists:
    """The block lists of a component, as attribute paths in execution order; empty if it is not split."""

    lists: tuple[str, ...] = ()
    levels: bool = False
    """Whether the lists hold the levels of a UNet. A level is too large to stream (2.4 GB of SDXL's 5.1), so its
    resnets, transformer blocks and samplers are streamed instead."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The prefixes of the names of tensors in blocks."""
        return tuple(f"{name}." for name in self.lists)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        places = "|".join(re.escape(name) for name in self.lists)
        if not self.levels:
            return re.compile(rf"(?:{places})\.\d+(?=\.)")
        inside = r"(?:resnets|downsamplers|upsamplers)\.\d+|attentions\.\d+\.transformer_blocks\.\d+"
        return re.compile(rf"(?:{places})(?:\.\d+)?\.(?:{inside})(?=\.)")

    def block_of(self, tensor: str) -> str | None:
        """The block of the tensor with that name; None for a tensor outside the blocks."""
        match = self._pattern.match(tensor) if self.lists else None
        return match[0] if match else None

    def order(self, block: str) -> tuple[Any, ...]:
        """The sort key of a block in execution order. In a UNet, each resnet precedes its attention; samplers last."""
        place = next(index for index, name in enumerate(self.lists) if block.startswith(f"{name}."))
        parts = block.removeprefix(self.lists[place] + ".").split(".")
        numbers = [int(part) for part in parts if part.isdigit()]
        if not self.levels:
            return place, numbers
        level, inside = (numbers[0], numbers[1:]) if parts[0].isdigit() else (0, numbers)  # the middle has no number
        sampler = "downsamplers" in parts or "upsamplers" in parts
        return place, level, sampler, inside[:1], "attentions" in parts, inside[1:]


NO_BLOCKS = BlockLists()
