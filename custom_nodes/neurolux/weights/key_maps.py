"""A component's own tensors out of a file that may hold more: without their prefix, and without what is no weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from .file_kinds import Place

SCALES = ("scale_weight", "weight_scale")
"""Beside a scaled fp8 weight: what it is multiplied with. The second name is that of ComfyUI's later files."""
NOT_WEIGHTS = ("scale_input", "input_scale", "scaled_fp8", "comfy_quant", "position_ids", "logit_scale")
T = TypeVar("T")


def own_tensors(place: Place, tensors: Mapping[str, T]) -> dict[str, T]:
    """The tensors at ``place``, named as their layout names them."""
    own = {name.removeprefix(place.prefix): value for name, value in tensors.items() if name.startswith(place.prefix)}
    return {with_scale_name(name): value for name, value in own.items() if not name.endswith(NOT_WEIGHTS)}


def with_scale_name(name: str) -> str:
    """``name``, with one spelling for the scale of a weight."""
    stem, _, last = name.rpartition(".")
    return f"{stem}.{SCALES[0]}" if last in SCALES else name
