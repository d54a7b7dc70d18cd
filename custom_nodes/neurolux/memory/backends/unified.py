"""Devices that share RAM with the system: the CPU, and Apple's GPUs."""

from __future__ import annotations

from .base import DeviceBackend


class CpuBackend(DeviceBackend):
    """ComfyUI without a GPU."""

    kind = "cpu"


class MpsBackend(DeviceBackend):
    """An Apple GPU. Its memory is the machine's RAM, and a weight in it is a copy of the one in RAM."""

    kind = "mps"
