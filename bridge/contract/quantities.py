"""Sizes and times for people, in SI units, the same on the command line and in the overlay."""

from __future__ import annotations


def size_text(size: float) -> str:
    """Bytes: ``312 MB``, ``4.2 GB``; tenths of a MB below ten of them."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def duration_text(seconds: float) -> str:
    """Seconds, rounded for reading: ``7 s``, ``2 min``, ``1.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
