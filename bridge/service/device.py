"""Which accelerator ComfyUI will find, without importing torch (which takes seconds and hundreds of megabytes).

Without `--cpu`, ComfyUI ends at start-up if torch has no device. So two things are needed: a device with its driver,
and a torch that is built for it.
"""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Device:
    """`kind` is cuda, rocm, mps or cpu; `note` says why an existing device cannot be used."""

    kind: str
    note: str = ""


def find_device(python: Path) -> Device:
    """The device that ComfyUI will use under this Python interpreter."""
    if sys.platform == "darwin":
        return Device("mps" if platform.machine() == "arm64" else "cpu")
    cuda_build, rocm_build = _torch_builds(python)
    driver = _cuda_driver_version()
    if driver is not None:
        if cuda_build is None:
            return Device("cpu", f"there is an NVIDIA GPU, but the torch of {python} is not built for CUDA")
        if driver[0] < cuda_build[0]:
            have, need = (".".join(map(str, version)) for version in (driver, cuda_build))
            return Device("cpu", f"the NVIDIA driver supports CUDA {have} but torch needs {need}: update the driver")
        return Device("cuda")
    if Path("/dev/kfd").exists():
        if rocm_build:
            return Device("rocm")
        return Device("cpu", f"there is an AMD GPU, but the torch of {python} is not built for ROCm")
    return Device("cpu")


def _cuda_driver_version() -> tuple[int, int] | None:
    """The newest CUDA version that the NVIDIA driver supports; None without a driver or a visible GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return None
    if cuda.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _torch_builds(python: Path) -> tuple[tuple[int, int] | None, bool]:
    """The CUDA version that the interpreter's torch is built for, and whether it is built for ROCm."""
    for library in ("lib", "lib64"):
        for version_file in python.parent.parent.glob(f"{library}/python3*/site-packages/torch/version.py"):
            text = version_file.read_text(encoding="utf-8", errors="replace")
            cuda = re.search(r"^cuda\b[^=]*= *['\"](\d+)\.(\d+)", text, re.MULTILINE)
            rocm = re.search(r"^hip\b[^=]*= *['\"]", text, re.MULTILINE)
            return (int(cuda[1]), int(cuda[2])) if cuda else None, rocm is not None
    # an interpreter that keeps its packages elsewhere: assume that its torch fits the machine
    return (0, 0), True
