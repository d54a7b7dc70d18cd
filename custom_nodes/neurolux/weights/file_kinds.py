"""The records that say what a single weight file is, and where in it a component is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Layout = Literal["diffusers", "original", "flat", "llama.cpp"]
"""How a component's tensors are named: as diffusers or transformers do, as the model's authors do (BFL, LDM, OpenCLIP),
as transformers do from 5.6 on, without ``text_model.``, or as llama.cpp's converter does (GGUF files of T5)."""


@dataclass(frozen=True)
class Place:
    """Where in a file a component is: what its tensors' names begin with, and how they go on."""

    prefix: str
    layout: Layout


@dataclass(frozen=True)
class FileKind:
    """What a file is, for a reader, and the components in it by the names of their parts."""

    kind: str
    parts: Mapping[str, Place]
