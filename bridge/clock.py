"""Durations between processes of one machine, which a change of the wall clock leaves right."""

from __future__ import annotations

import functools
import time
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@functools.cache
def _boot() -> str | None:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return None


def stamp() -> str | None:
    """This moment, on the clock that counts since the start of this machine; None on a system without one."""
    boot = _boot()
    return None if boot is None else f"{boot}:{time.clock_gettime(time.CLOCK_BOOTTIME):.6f}"


def seconds_since(stamped: str | None) -> float | None:
    """The seconds since a stamp; None for the stamp of another machine, or of before its last start."""
    boot, _, seconds = (stamped or "").partition(":")
    if not boot or boot != _boot():
        return None
    try:
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - float(seconds))
    except ValueError:
        return None
