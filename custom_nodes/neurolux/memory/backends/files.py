"""Weights that RAM does not hold: mapped from the files that they were loaded from, or from a temporary file."""

from __future__ import annotations

import bisect
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import folder_paths
import torch

from ...errors import WeightsMissing

MAPS = Path("/proc/self/maps")
DISK_RESERVE_BYTES = 1_000_000_000
ALIGNMENT = 512
"""Of each tensor inside a buffer or a file, in bytes: what CUDA's own allocator keeps to."""


def aligned(size: int) -> int:
    """``size`` rounded up to where the next tensor may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class FileMappings:
    """Which addresses of this process are mapped from files. Empty where the system does not tell (not Linux)."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []
        if not MAPS.is_file():
            return
        for line in MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
            addresses, _, _, device, inode, *_ = line.split(maxsplit=5)
            start, end = (int(address, 16) for address in addresses.split("-"))
            if inode == "0" or device == "00:00":
                continue
            if self._spans and self._spans[-1][1] == start:
                start = self._spans.pop()[0]
            self._spans.append((start, end))

    def __contains__(self, tensor: torch.Tensor) -> bool:
        start = tensor.data_ptr()
        place = bisect.bisect_right(self._spans, (start, 1 << 64)) - 1
        return place >= 0 and start + tensor.nbytes <= self._spans[place][1]


def spill(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """``tensors`` written into a file without a name, and mapped from there.

    Raises WeightsMissing where the disk has no room for them.
    """
    size = sum(aligned(tensor.nbytes) for tensor in tensors)
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size + DISK_RESERVE_BYTES:
        raise WeightsMissing(
            f"offload disk has to write {size / 1e9:.1f} GB of converted weights and {folder} has {free / 1e9:.1f} GB "
            "free; free some space, or choose the precision that the files are stored in, which needs no copy"
        )
    handle, name = tempfile.mkstemp(prefix="neurolux-", suffix=".weights", dir=folder)
    try:
        os.truncate(handle, max(size, 1))
        storage = cast(torch.UntypedStorage, torch.UntypedStorage.from_file(name, shared=True, nbytes=max(size, 1)))
        memory = torch.empty(0, dtype=torch.uint8).set_(storage)
        start, places = 0, []
        for tensor in tensors:
            place = memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            place.copy_(tensor)
            places.append(place)
            start += aligned(tensor.nbytes)
        os.fsync(handle)  # written pages are clean: the system may drop them
        return places
    finally:
        os.close(handle)
        Path(name).unlink()
