"""Records for single weight files: their tensors, their kind, and where each component is in a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Layout = Literal["diffusers", "original", "flat", "llama.cpp"]
"""The naming scheme of a component's tensors. diffusers: diffusers' or transformers' names. original: those of the
model's authors (BFL, LDM, OpenCLIP). flat: transformers' names from 5.6 on, without ``text_model.``. llama.cpp: the
names of its converter (GGUF files of T5)."""


@dataclass(frozen=True)
class Place:
    """Where a component is in a file: the prefix of its tensor names, and the naming scheme after the prefix."""

    prefix: str
    layout: Layout


@dataclass(frozen=True)
class FileKind:
    """The kind of a file, as text for the user, and the components in it by part name."""

    kind: str
    parts: Mapping[str, Place]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: the file's name for its type, its shape (decoded, for quantized types), its size in the file in
    bytes, and its offset in the file."""

    type: str
    shape: tuple[int, ...]
    bytes: int
    start: int = 0

    @property
    def parameters(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)
