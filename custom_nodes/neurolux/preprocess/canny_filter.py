"""Canny's edges as ControlNets were trained on them: those of OpenCV's ``Canny`` on a colour image.

J. Canny, "A Computational Approach to Edge Detection", 1986; the details follow OpenCV's documentation: no blur, Sobel
3x3, the L1 norm, and at each pixel the channel with the largest gradient. So red beside a blue of the same grey is an
edge, which ComfyUI's own Canny node, working on grey, does not see. Pure numbers: neither torch nor ComfyUI.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import ndimage

MOST = 2040
"""The largest L1 norm of a Sobel gradient of 8-bit pixels."""
SHALLOW, STEEP = math.sqrt(2) - 1, math.sqrt(2) + 1
"""Tangents of 22.5 and 67.5 degrees: between them a direction is diagonal."""
NEIGHBOURS = np.ones((3, 3), bool)


def canny(pixels: np.ndarray, low: int, high: int) -> np.ndarray:
    """The edges of 8-bit ``pixels`` (H, W, C) in a signed type, as booleans (H, W)."""
    across, down = strongest(gradient(pixels, 1), gradient(pixels, 0))
    size = np.abs(across) + np.abs(down)
    candidates = ridge(size, across, down) & (size > low)
    found: Any = ndimage.label(candidates, NEIGHBOURS)
    labels: np.ndarray = found[0]
    kept = np.unique(labels[candidates & (size > high)])
    return np.isin(labels, kept[kept > 0])


def gradient(pixels: np.ndarray, axis: int) -> np.ndarray:
    """Sobel's, of each channel by itself (``ndimage.sobel`` would smooth over the channels too)."""
    change = ndimage.correlate1d(pixels, [-1, 0, 1], axis, mode="nearest")
    return ndimage.correlate1d(change, [1, 2, 1], 1 - axis, mode="nearest")


def strongest(across: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the gradients (H, W, C) at each pixel that of the channel where it is largest, (H, W)."""
    channel = (np.abs(across) + np.abs(down)).argmax(axis=-1)[..., None]
    return np.take_along_axis(across, channel, -1)[..., 0], np.take_along_axis(down, channel, -1)[..., 0]


def ridge(size: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Where the gradient is larger than on both sides along its direction; of two equal ones, the first counts."""
    around = np.pad(size, 1)

    def beside(rows: int, columns: int) -> np.ndarray:
        height, width = size.shape
        return around[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    horizontal = np.abs(down) < np.abs(across) * SHALLOW
    vertical = np.abs(down) > np.abs(across) * STEEP
    falling = (across < 0) == (down < 0)  # the gradient points to the lower right, or to the upper left
    along_row = (size > beside(0, -1)) & (size >= beside(0, 1))
    along_column = (size > beside(-1, 0)) & (size >= beside(1, 0))
    along_falling = (size > beside(-1, -1)) & (size > beside(1, 1))
    along_rising = (size > beside(-1, 1)) & (size > beside(1, -1))
    diagonal = np.where(falling, along_falling, along_rising)
    return np.where(horizontal, along_row, np.where(vertical, along_column, diagonal))
