"""Reads the header of a weight file: names, types and shapes of its tensors. Reads no weights.

Formats: safetensors (a length, a JSON object, the data; see the README of safetensors) and GGUF. Pickled files are
refused, because opening one runs the code in it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import WeightsMissing

SAFETENSORS = (".safetensors", ".sft")
GGUF = ".gguf"
READABLE = (*SAFETENSORS, GGUF)
LARGEST_HEADER = 100_000_000
"""safetensors' own limit."""
_headers: dict[Path, tuple[tuple[int, int], WeightHeader]] = {}


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


@dataclass(frozen=True)
class WeightHeader:
    """A weight file's tensors by name."""

    path: Path
    tensors: Mapping[str, TensorInfo]

    @property
    def gguf(self) -> bool:
        """Whether the file is a GGUF."""
        return self.path.suffix == GGUF

    @property
    def type(self) -> str:
        """The type that takes most of the bytes."""
        totals: dict[str, int] = {}
        for tensor in self.tensors.values():
            totals[tensor.type] = totals.get(tensor.type, 0) + tensor.bytes
        return max(totals, key=lambda name: totals[name], default="")


def read_header(path: Path) -> WeightHeader:
    """The header of ``path``, cached until the file changes.

    Raises WeightsMissing if the file does not exist, is not a weight file or is truncated.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise WeightsMissing(f"{path} cannot be read ({error.strerror}); put the file back") from error
    stamp = (status.st_mtime_ns, status.st_size)
    known = _headers.get(path)
    if known is None or known[0] != stamp:
        known = (stamp, WeightHeader(path, parsed(path, status.st_size)))
        _headers[path] = known
    return known[1]


def parsed(path: Path, size: int) -> dict[str, TensorInfo]:
    """The tensors of ``path``, which is ``size`` bytes long."""
    if path.suffix == GGUF:
        return parsed_gguf(path)
    if path.suffix in SAFETENSORS:
        return parsed_safetensors(path, size)
    raise WeightsMissing(
        f"{path.name} is a pickled file, which can run code when it is opened; use a safetensors or GGUF version"
    )


def parsed_safetensors(path: Path, size: int) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, LARGEST_HEADER):
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = {
            name: TensorInfo(
                entry["dtype"],
                tuple(entry["shape"]),
                entry["data_offsets"][1] - entry["data_offsets"][0],
                8 + length + entry["data_offsets"][0],
            )
            for name, entry in header.items()
        }
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise damaged(path, f"it does not begin as a safetensors file does: {error}") from error
    if end != size:
        raise damaged(path, f"it has {size} bytes and should have {end}")
    return found


def parsed_gguf(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a GGUF file, read with the ``gguf`` package."""
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(path).tensors
        return {
            tensor.name: TensorInfo(
                tensor.tensor_type.name,
                tuple(int(side) for side in reversed(tensor.shape.tolist())),
                int(tensor.n_bytes),
            )
            for tensor in tensors
        }
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise damaged(path, f"it cannot be read as GGUF: {error}") from error


def damaged(path: Path, what: str) -> WeightsMissing:
    """The error for a file that exists but cannot be used. ``what`` is the reason."""
    return WeightsMissing(f"{path} is damaged or incomplete ({what}); fetch the file again")
