"""RAM on pages of its own, which can be pinned exactly and given back at once."""

from __future__ import annotations

import mmap

import torch

SMALLEST_PINNED = 1 << 20
"""Registering a page costs more than copying a few of them without."""


def whole_pages(size: int) -> torch.Tensor:
    """``size`` bytes on pages that nothing else shares.

    A Parameter, because ComfyUI's manager pins nothing else.
    """
    memory = torch.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=torch.uint8)
    return torch.nn.Parameter(memory, requires_grad=False)


def same_place(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors begin at the same byte of the same memory. Fake tensors have no addresses to compare."""
    return same_memory(first, second) and first.storage_offset() == second.storage_offset()


def same_memory(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors share their memory."""
    return first.untyped_storage()._cdata == second.untyped_storage()._cdata
