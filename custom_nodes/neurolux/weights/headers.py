"""Reads the header of a weight file: names, types and shapes of its tensors. Reads no weights.

Formats: safetensors (a length, a JSON object, the data; see the README of safetensors) and GGUF. Pickled files are
refused, because opening one runs the code in it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import WeightsMissing
from .file_kinds import TensorInfo
from .gguf_header import read_gguf_header
from .user_files import json_object, open_regular

SAFETENSORS = (".safetensors", ".sft")
GGUF = ".gguf"
READABLE = (*SAFETENSORS, GGUF)
LARGEST_HEADER = 100_000_000
"""safetensors' own limit."""
LARGEST_NOTE = 65_536
"""Bytes of a tensor that holds JSON text about a layer. Usual are below 1000."""
NOTES = re.compile(r"\.comfy_quant$|\.quant_state\.bitsandbytes__\w+$")
"""Names of such tensors."""
_headers: dict[Path, tuple[tuple[int, int], WeightHeader]] = {}


@dataclass(frozen=True)
class WeightHeader:
    """A weight file's tensors by name."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the program that wrote a safetensors file noted about it."""

    @property
    def gguf(self) -> bool:
        """Whether the file is a GGUF."""
        return is_gguf(self.path)

    @cached_property
    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """The JSON texts that quantizers keep as tensors, by tensor name. Raises WeightsMissing for a damaged one."""
        names = [name for name in self.tensors if NOTES.search(name)]
        found: dict[str, Mapping[str, Any]] = {}
        try:
            with open_regular(self.path) as file:
                for name in names:
                    info = self.tensors[name]
                    if info.bytes > LARGEST_NOTE:
                        raise ValueError(f"{name} has {info.bytes} bytes")
                    file.seek(info.start)
                    found[name] = json_object(file.read(info.bytes))
        except (OSError, ValueError) as error:
            raise damaged(self.path, f"its quantization cannot be read: {reason(error)}") from error
        return found

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
        known = (stamp, WeightHeader(path, *parsed(path, status.st_size)))
        _headers[path] = known
    return known[1]


def is_safetensors(path: Path) -> bool:
    """Whether the name is that of a safetensors file: programs write ``.sft`` and capital letters too."""
    return path.suffix.lower() in SAFETENSORS


def is_gguf(path: Path) -> bool:
    """Whether the name is that of a GGUF file."""
    return path.suffix.lower() == GGUF


def parsed(path: Path, size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the metadata of ``path``, which is ``size`` bytes long."""
    if is_gguf(path):
        return parsed_gguf(path, size), {}
    if is_safetensors(path):
        return parsed_safetensors(path, size)
    raise WeightsMissing(
        f"{path.name} is a pickled file, which can run code when it is opened; use a safetensors or GGUF version"
    )


def parsed_safetensors(path: Path, size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    try:
        with open_regular(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, LARGEST_HEADER):
                raise ValueError("its header is longer than the file")
            header = json_object(file.read(length), unique=True)
        noted = header.pop("__metadata__", None)
        metadata = {str(key): str(value) for key, value in noted.items()} if isinstance(noted, dict) else {}
        found = {name: parsed_entry(name, entry, 8 + length) for name, entry in header.items()}
        end = check_apart(found, 8 + length)
    except (OSError, ValueError, struct.error) as error:
        raise damaged(path, f"it does not begin as a safetensors file does: {reason(error)}") from error
    if end != size:
        raise damaged(path, f"it has {size} bytes and should have {end}")
    return found, metadata


def check_apart(found: Mapping[str, TensorInfo], start: int) -> int:
    """Where the last tensor ends; the data begins at ``start``. Raises ValueError for tensors that share bytes."""
    end = start
    for name, info in sorted(found.items(), key=lambda item: (item[1].start, item[1].bytes)):
        if info.bytes and info.start < end:
            raise ValueError(f"the bytes of {name!r} are those of another tensor too")
        end = max(end, info.start + info.bytes)
    return end


def parsed_entry(name: str, entry: Any, start: int) -> TensorInfo:
    """One tensor of a header, whose data begins at ``start``. Raises ValueError for an entry of another form."""
    if not isinstance(entry, dict):
        raise ValueError(f"the entry of {name!r} is not an object")
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or not are_sizes(shape) or not are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"the entry of {name!r} has no valid dtype, shape and data_offsets")
    if offsets[0] > offsets[1]:
        raise ValueError(f"the entry of {name!r} ends before it begins")
    return TensorInfo(kind, tuple(shape), offsets[1] - offsets[0], start + offsets[0])


def are_sizes(value: Any) -> TypeGuard[list[int]]:
    """Whether a JSON value is a list of numbers from 0 on."""
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def parsed_gguf(path: Path, size: int) -> dict[str, TensorInfo]:
    """The tensors of a GGUF file."""
    try:
        with open_regular(path) as file:
            return read_gguf_header(file, size)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise damaged(path, f"it cannot be read as GGUF: {reason(error)}") from error


def reason(error: Exception) -> str:
    """An error as text, without the path that the message names anyway."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def damaged(path: Path, what: str) -> WeightsMissing:
    """The error for a file that exists but cannot be used. ``what`` is the reason."""
    return WeightsMissing(f"{path} is damaged or incomplete ({what}); fetch the file again")
