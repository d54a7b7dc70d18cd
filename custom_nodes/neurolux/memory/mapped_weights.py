"""Weights that RAM does not hold: mapped from the files that they were loaded from, or from a temporary file.

A mapped page is read from the disk when it is used and can be dropped by the system at any time, so it is no RAM in
use. Weights whose type is that of their safetensors file are mapped already when they are loaded; what was converted or
quantized on the way is written into a file of its own, which has no name and disappears with the weights.
"""

from __future__ import annotations

import bisect
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import folder_paths
import torch

from ..errors import WeightsMissing
from .units import Slot, Unit, aligned

MAPS = Path("/proc/self/maps")
DISK_RESERVE_BYTES = 1_000_000_000


def map_to_files(units: Iterable[Unit]) -> None:
    """Have the masters of ``units`` in files; the weights must be home.

    Raises WeightsMissing where the disk has no room for what must be written.
    """
    mapped = FileMappings()
    loose = [slot for unit in units for slot in unit.slots if slot not in mapped]
    if loose:
        spill(loose)


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

    def __contains__(self, slot: Slot) -> bool:
        start = slot.home.data_ptr()
        place = bisect.bisect_right(self._spans, (start, 1 << 64)) - 1
        return place >= 0 and start + slot.nbytes <= self._spans[place][1]


def spill(slots: Iterable[Slot]) -> None:
    """Write the masters of ``slots`` into a file without a name, and map them from there."""
    slots = list(slots)
    size = sum(aligned(slot.nbytes) for slot in slots)
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
        start = 0
        for slot in slots:
            home = slot.home
            place = memory[start : start + home.nbytes].view(home.dtype).view(home.shape)
            place.copy_(home)
            slot.put(place)
            slot.home = place
            start += aligned(home.nbytes)
        os.fsync(handle)  # written pages are clean: the system may drop them
    finally:
        os.close(handle)
        Path(name).unlink()
