"""Laying RGBA sprites on a canvas."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image


def paste(canvas: np.ndarray, sprite: np.ndarray, x: int, y: int) -> None:
    """Lay an RGBA uint8 sprite over a float (H, W, 3) canvas in 0..255 at (x, y), clipped to the canvas."""
    height, width = canvas.shape[:2]
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + sprite.shape[1], width), min(y + sprite.shape[0], height)
    if left >= right or top >= bottom:
        return
    part = sprite[top - y : bottom - y, left - x : right - x].astype(np.float32)
    alpha = part[..., 3:] / 255.0
    region = canvas[top:bottom, left:right]
    region += alpha * (part[..., :3] - region)


def scale(sprite: np.ndarray, size: int) -> np.ndarray:
    """The square RGBA ``sprite`` at (size, size), read-only; PIL premultiplies alpha itself when it resizes RGBA."""
    return _scaled(sprite.tobytes(), len(sprite), size)


@lru_cache(maxsize=1024)  # 50 MB; the evaluation compares with every subject again and again
def _scaled(pixels: bytes, side: int, size: int) -> np.ndarray:
    image = Image.frombytes("RGBA", (side, side), pixels)
    scaled = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))
    scaled.flags.writeable = False
    return scaled
