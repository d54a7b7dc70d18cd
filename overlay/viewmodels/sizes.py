"""Image sizes by aspect ratio: sides that suit a model, on its grid and within its limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bridge.contract import IntegerLimit, ModelInfo

RATIOS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))


@dataclass(frozen=True)
class SizePreset:
    """One entry of the size menu. ``ratio`` is the intended one; the grid makes it approximate."""

    ratio: str
    width: int
    height: int

    @property
    def label(self) -> str:
        """``4:3 - 1152 x 864``, with typographic characters."""
        return f"{self.ratio} \N{EN DASH} {self.width} \N{MULTIPLICATION SIGN} {self.height}"


def size_presets(model: ModelInfo) -> list[SizePreset]:
    """The ratios at the pixel count that ``model`` was trained for, each size once."""
    area = model.defaults.width * model.defaults.height
    presets: list[SizePreset] = []
    for across, down in RATIOS:
        width = on_grid(math.sqrt(area * across / down), model.limits.width)
        height = on_grid(math.sqrt(area * down / across), model.limits.height)
        if all((width, height) != (preset.width, preset.height) for preset in presets):
            presets.append(SizePreset(f"{across}:{down}", width, height))
    return presets


def on_grid(pixels: float, limit: IntegerLimit) -> int:
    """The nearest side length that ``limit`` allows."""
    step = limit.multiple_of
    lowest = -(-limit.min // step) * step
    highest = limit.max // step * step
    return min(max(round(pixels / step) * step, lowest), highest)
