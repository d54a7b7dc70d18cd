"""Functions that derive a configuration from tensor names and shapes, and an image size from a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable

SMALLEST_SIDE, LARGEST_SIDE, USUAL_SIDE = 64, 2048, 1024


def numbered(names: Iterable[str], pattern: str) -> int:
    """How many different numbers ``pattern`` (with one group) finds in the names."""
    found = (re.match(pattern, name) for name in names)
    return len({match[1] for match in found if match})


def children(names: Iterable[str], prefix: str) -> int:
    """How many numbered children ``prefix`` has among the names."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    return len([number for number in numbers if number.isdecimal()])


def sensible_side(pixels: object) -> int:
    """``pixels`` if it is a plausible image size, else 1024."""
    if isinstance(pixels, int) and SMALLEST_SIDE <= pixels <= LARGEST_SIDE and pixels % 16 == 0:
        return pixels
    return USUAL_SIDE
