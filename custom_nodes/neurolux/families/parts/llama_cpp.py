"""The tensor names of llama.cpp, which GGUF files of text encoders have."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..spec import Tensors


def renamed(
    tensors: Tensors,
    block: re.Pattern[str],
    outside: Mapping[str, str],
    layers: Mapping[str, str],
    blocks: str,
    prefix: str = "",
) -> Tensors:
    """Rename tensors to those of a class of transformers; leaves out names that are not listed.

    ``block``: (number, layer) in the name of a layer in a block. ``outside``, ``layers``: llama.cpp's names outside of
    the blocks and in one, with the class's. ``blocks``: the class's list of blocks. ``prefix``: of the class's names
    outside of the blocks.
    """
    found: Tensors = {}
    for name, value in tensors.items():
        stem, _, kind = name.rpartition(".")
        place = block.fullmatch(stem)
        target = outside.get(stem) if place is None else layers.get(place[2])
        if target is not None:
            found[f"{prefix + target if place is None else f'{blocks}.{place[1]}.{target}'}.{kind}"] = value
    return found
