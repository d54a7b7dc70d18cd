"""The backend of this process: that of the device that ComfyUI computes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import comfy.model_management as mm

from .base import DeviceBackend
from .cuda import CudaBackend, RocmBackend, is_rocm
from .unified import CpuBackend, MpsBackend

_replaced: list[DeviceBackend] = []


def backend() -> DeviceBackend:
    """What the pack asks about the device, and has it do."""
    return _replaced[-1] if _replaced else _of_kind(mm.get_torch_device().type)


@cache
def _of_kind(kind: str) -> DeviceBackend:
    if kind == "cuda":
        return RocmBackend() if is_rocm() else CudaBackend()
    return {"cpu": CpuBackend, "mps": MpsBackend}.get(kind, DeviceBackend)()


@contextmanager
def replaced(other: DeviceBackend) -> Iterator[DeviceBackend]:
    """``other`` answers meanwhile: a simulated card."""
    _replaced.append(other)
    try:
        yield other
    finally:
        _replaced.remove(other)
