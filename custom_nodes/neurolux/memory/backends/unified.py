"""Devices that share RAM with the system: the CPU, and Apple's GPUs."""

from __future__ import annotations

from .base import DeviceBackend


class CpuBackend(DeviceBackend):
    """ComfyUI without a GPU."""

    kind = "cpu"


class MpsBackend(DeviceBackend):
    """An Apple GPU. torch keeps its tensors apart from the CPU's, in the same RAM."""

    kind = "mps"
    masters_move = True
