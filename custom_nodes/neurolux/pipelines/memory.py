"""How much device memory a stage works with, and what happens when it was not enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import comfy.model_management as mm
import torch

from ..errors import OutOfMemory

T = TypeVar("T")

ENCODE_BYTES = 500_000_000
SAMPLE_BYTES_PER_PIXEL = 2400
"""Activations of a FLUX or SDXL step, about 2.5 GB at 1024x1024."""
DECODE_BYTES_PER_PIXEL = 2178
"""ComfyUI's own figure for this VAE (comfy/sd.py, ``memory_used_decode``), per byte of the number format."""


def sample_bytes(width: int, height: int) -> int:
    """Working memory of one denoising step."""
    return width * height * SAMPLE_BYTES_PER_PIXEL


def decode_bytes(width: int, height: int, dtype: torch.dtype) -> int:
    """Working memory of decoding one image."""
    return width * height * DECODE_BYTES_PER_PIXEL * dtype.itemsize


def with_memory_errors(stage: str, remedy: str, work: Callable[[], T]) -> T:
    """Run ``work``; when memory runs out, free everything and raise OutOfMemory with the remedy.

    The error is raised after the ``except`` block: inside it the traceback would keep the failed stage's tensors alive.
    """
    try:
        return work()
    except (mm.OOM_EXCEPTION, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        detail = str(error).split("\n")[0]
    mm.unload_all_models()
    mm.soft_empty_cache()
    raise OutOfMemory(f"out of memory while {stage}: {detail}. {remedy}")


def out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory; torch's CPU allocator raises a plain RuntimeError."""
    return isinstance(error, (mm.OOM_EXCEPTION, MemoryError)) or "DefaultCPUAllocator" in str(error)
