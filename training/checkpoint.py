"""Checkpoints that survive being interrupted, and the learning-rate schedule both trainings share."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` beside ``path`` and move it into place, so that a kill leaves the older file whole."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load(path: Path, device: str = "cpu") -> dict[str, Any] | None:
    """The state at ``path``, or None where training has not begun."""
    return torch.load(path, map_location=device, weights_only=True) if path.exists() else None


def one_cycle(progress: float, warmup: float = 0.04) -> float:
    """Linear warm-up, then half a cosine to 2 %; ``progress`` runs from 0 to 1."""
    if progress < warmup:
        return progress / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
