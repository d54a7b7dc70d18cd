"""The header of a GGUF file, with every length checked against the file before it is used.

The ``gguf`` package trusts them: an array that claims 2**60 elements keeps its reader busy for ever. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from .file_kinds import TensorInfo

MAGIC = b"GGUF"
VERSIONS = (2, 3)
LARGEST_HEADER = 200_000_000
"""Bytes. Vocabularies and a thousand tensors take a few millions."""
MOST_DIMENSIONS = 8
MOST_NESTED = 4
ALIGNMENT = 32
ALIGNMENT_KEY = b"general.alignment"
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type."""
STRING, ARRAY, UINT32 = 8, 9, 4


def read_gguf_header(file: BinaryIO, size: int) -> dict[str, TensorInfo]:
    """The tensors of a GGUF file of ``size`` bytes. Raises ValueError for anything else."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    reader = _Reader(file, size)
    if reader.take(4) != MAGIC:
        raise ValueError("it does not begin as a GGUF file does")
    version = reader.number("<I")
    if version not in VERSIONS:
        raise ValueError(f"its version is {version}; supported are 2 and 3, little-endian")
    tensor_count, value_count = reader.number("<Q"), reader.number("<Q")
    alignment = ALIGNMENT
    for _ in range(reader.count(value_count, 13)):
        key = reader.text()
        kind = reader.number("<I")
        if key == ALIGNMENT_KEY and kind == UINT32:
            alignment = reader.number("<I")
            continue
        reader.skip_value(kind, MOST_NESTED)
    if alignment < 1:
        raise ValueError("its alignment is 0")
    found: dict[str, TensorInfo] = {}
    for _ in range(reader.count(tensor_count, 24)):
        name = reader.text().decode("utf-8")
        dimensions = reader.number("<I")
        if dimensions > MOST_DIMENSIONS:
            raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(reversed([reader.number("<Q") for _ in range(dimensions)]))
        kind = GGMLQuantizationType(reader.number("<I"))
        block, block_bytes = GGML_QUANT_SIZES[kind]
        tensor = TensorInfo(kind.name, shape, 0, reader.number("<Q"))
        found[name] = TensorInfo(kind.name, shape, tensor.parameters // block * block_bytes, tensor.start)
    start = -(-reader.at // alignment) * alignment
    end = start + max((tensor.start + tensor.bytes for tensor in found.values()), default=0)
    if end > size:
        raise ValueError(f"it has {size} bytes and should have at least {end}")
    return {
        name: TensorInfo(tensor.type, tensor.shape, tensor.bytes, start + tensor.start)
        for name, tensor in found.items()
    }


class _Reader:
    """Reads values one after the other, never beyond the end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._end = min(size, LARGEST_HEADER)
        self.at = 0

    def take(self, length: int) -> bytes:
        """The next ``length`` bytes."""
        if length > self._end - self.at:
            raise ValueError("it ends within its header, or the header is too long")
        data = self._file.read(length)
        if len(data) != length:
            raise ValueError("it ends within its header")
        self.at += length
        return data

    def skip(self, length: int) -> None:
        """Pass over ``length`` bytes."""
        if length > self._end - self.at:
            raise ValueError("it ends within its header, or the header is too long")
        self._file.seek(length, 1)
        self.at += length

    def number(self, form: str) -> int:
        """An unsigned number."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, number: int, least: int) -> int:
        """A number of items, each of which takes at least ``least`` bytes."""
        if number > (self._end - self.at) // least:
            raise ValueError(f"it claims {number} items, more than it can hold")
        return number

    def text(self) -> bytes:
        """A string."""
        return self.take(self.number("<Q"))

    def skip_value(self, kind: int, nested: int) -> None:
        """Pass over a value, which may be an array of arrays."""
        if kind in SIZES:
            self.skip(SIZES[kind])
        elif kind == STRING:
            self.skip(self.number("<Q"))
        elif kind == ARRAY and nested:
            inner, length = self.number("<I"), self.number("<Q")
            if inner in SIZES:
                self.skip(self.count(length, SIZES[inner]) * SIZES[inner])
                return
            for _ in range(self.count(length, 8)):
                self.skip_value(inner, nested - 1)
        else:
            raise ValueError(f"a value has the unknown type {kind}, or arrays are nested too deeply")
