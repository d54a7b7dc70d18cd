"""Weights that RAM does not hold: mapped from the files that they were loaded from, or from a temporary file.

A mapped page is read from the disk when it is used and can be dropped by the system at any time, so it is no RAM in
use. Weights whose type is that of their safetensors file are mapped already when they are loaded; what was converted or
quantized on the way is written into a file of its own, which has no name and disappears with the weights.
"""

from __future__ import annotations

from collections.abc import Iterable

from .backends.choice import backend
from .units import Unit


def map_to_files(units: Iterable[Unit]) -> None:
    """Have the masters of ``units`` in files; the weights must be home.

    Raises WeightsMissing where the disk has no room for what must be written.
    """
    device = backend()
    is_mapped = device.mapped()
    loose = [slot for unit in units for slot in unit.slots if not is_mapped(slot.home)]
    if not loose:
        return
    for slot, place in zip(loose, device.spill([slot.home for slot in loose]), strict=True):
        slot.put(place)
        slot.home = place
