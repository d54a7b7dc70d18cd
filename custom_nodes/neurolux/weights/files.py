"""Opens weight files: tensors by name, mapped from disk and read only when they are used."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from ..errors import WeightsMissing
from .headers import damaged, is_gguf, is_safetensors, read_header
from .quantized.decoding import in_one_form
from .user_files import open_regular

LoadProgress = Callable[[int, int], None]
"""Called with (bytes read, total bytes). An exception that it raises stops loading."""
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class LoadMeter:
    """Counts the bytes that are read for several components, and reports them."""

    def __init__(self, total: int, progress: LoadProgress | None) -> None:
        self.total = total
        self.done = 0
        self._progress = progress

    def add(self, count: int) -> None:
        """Count ``count`` more bytes as read."""
        self.done = min(self.done + count, self.total)
        if self._progress is not None:
            self._progress(self.done, self.total)

    def finish(self) -> None:
        """All weights are loaded: count the rest of the files, which was not needed, as read."""
        if self.done < self.total:
            self.add(self.total - self.done)


def open_files(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    """The tensors of ``files`` by name. Raises WeightsMissing for a damaged file."""
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        tensors.update(open_file(path))
    return tensors


def open_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file by name. Raises WeightsMissing for a damaged file."""
    if is_gguf(path):
        return open_gguf(path)
    if is_safetensors(path):
        return map_safetensors(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise damaged(path, str(error)) from error
    return {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}


def map_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, memory-mapped. The safetensors library would read all of them now.

    The mapping is private: writes to a tensor never reach the file.
    """
    header = read_header(path)
    with open_regular(path) as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensors: dict[str, torch.Tensor] = {}
    for name, info in header.tensors.items():
        if info.type not in TYPES:
            raise WeightsMissing(
                f"{path} cannot be read: {name} is {info.type}, and supported are {', '.join(TYPES)}; use a version "
                "in one of these"
            )
        kind = TYPES[info.type]
        if info.bytes != info.parameters * kind.itemsize:
            raise damaged(path, f"{name} has {info.bytes} bytes and should have {info.parameters * kind.itemsize}")
        flat = (
            torch.frombuffer(memory, dtype=kind, count=info.parameters, offset=info.start)
            if info.bytes
            else (torch.empty(0, dtype=kind))
        )
        tensors[name] = flat.view(info.shape)
    return in_one_form(tensors, header)


def open_gguf(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a GGUF file. Quantized ones are diffusers' GGUFParameter, which carries the quantization type."""
    import warnings

    import gguf
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES, GGUFParameter

    read_header(path)
    plain = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
    tensors: dict[str, torch.Tensor] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        kind = tensor.tensor_type
        if kind not in plain and kind not in SUPPORTED_GGUF_QUANT_TYPES:
            supported = ", ".join(known.name for known in SUPPORTED_GGUF_QUANT_TYPES)
            raise WeightsMissing(
                f"{path} cannot be read: {tensor.name} is {kind.name}, and supported are F32, F16, {supported}; use a "
                "version in one of these"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            data = torch.from_numpy(tensor.data)
        tensors[tensor.name] = data if kind in plain else GGUFParameter(data, quant_type=kind)  # pyright: ignore[reportCallIssue]
    return tensors


def outlines(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of ``path`` on the meta device: decoded shapes and types, without data."""
    if not is_safetensors(path) and not is_gguf(path):
        loaded = torch.load(path, map_location="meta", weights_only=True)
        return {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    header = read_header(path)
    tensors = {
        name: torch.empty(info.shape, dtype=TYPES.get(info.type, torch.uint8), device="meta")
        for name, info in header.tensors.items()
    }
    return tensors if header.gguf else in_one_form(tensors, header)
