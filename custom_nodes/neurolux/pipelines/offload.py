"""Where the weights go: a pure plan, so that it can be printed and tested as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

OffloadMode = Literal["none", "model", "sequential"]
OFFLOAD_CHOICES = ("auto", "none", "model", "sequential")

WORKING_BYTES = 2_500_000_000
"""Room for activations at 1024x1024, and for what the driver and the desktop take meanwhile."""
ACCELERATORS = ("cuda", "xpu", "npu")
"""Devices with memory of their own. On a CPU and on MPS weights and activations share one memory: nothing to move."""


@dataclass(frozen=True)
class OffloadPlan:
    """The chosen mode, the device memory it takes at its peak (weights and working room), and why it was chosen."""

    mode: OffloadMode
    peak_bytes: int
    reason: str


def plan_offload(component_bytes: Mapping[str, int], free_vram: int, device: str, wanted: str = "auto") -> OffloadPlan:
    """Choose how ``component_bytes`` (component name to bytes of weights) use ``free_vram`` bytes of ``device``.

    ``wanted`` is the user's choice; "auto" takes the fastest mode that fits. On a device without memory of its own
    every choice is the same as "none", and the plan says so.
    """
    total = sum(component_bytes.values())
    text = sum(size for name, size in component_bytes.items() if name.startswith("text_encoder"))
    others = [size for name, size in component_bytes.items() if not name.startswith("text_encoder")]
    largest = max([text, *others], default=0)
    if device not in ACCELERATORS:
        note = "" if wanted in ("auto", "none") else f"; {wanted!r} changes nothing here"
        return OffloadPlan("none", total, f"{device} has no memory of its own to offload from{note}")
    peaks: dict[OffloadMode, int] = {
        "none": total + WORKING_BYTES,
        "model": largest + WORKING_BYTES,
        "sequential": WORKING_BYTES,
    }
    if wanted == "none" or wanted == "model" or wanted == "sequential":
        return OffloadPlan(wanted, peaks[wanted], "as chosen")
    if peaks["none"] <= free_vram:
        return OffloadPlan("none", peaks["none"], f"everything fits: {gigabytes(total)} of {gigabytes(free_vram)} free")
    if peaks["model"] <= free_vram:
        return OffloadPlan(
            "model",
            peaks["model"],
            f"one component at a time fits: {gigabytes(largest)} of {gigabytes(free_vram)} free",
        )
    return OffloadPlan(
        "sequential",
        peaks["sequential"],
        f"the largest component, {gigabytes(largest)}, does not fit in {gigabytes(free_vram)} free",
    )


def gigabytes(size: int) -> str:
    """Bytes for a reader."""
    return f"{size / 1e9:.1f} GB"
