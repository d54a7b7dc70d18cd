"""Picks a component's weights out of a file that may hold more: removes their prefix and drops tensors that are no
weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from .file_kinds import Place

SCALES = ("scale_weight", "weight_scale")
"""Names of the scale that a scaled fp8 weight is multiplied with. Newer files for ComfyUI use the second one."""
ROTATION = "rotation"
"""Name of the size of the groups of inputs that a weight was rotated in; see decoding.py."""
NOT_WEIGHTS = ("scale_input", "input_scale", "scaled_fp8", "comfy_quant", "position_ids", "logit_scale")
T = TypeVar("T")


def own_tensors(place: Place, tensors: Mapping[str, T]) -> dict[str, T]:
    """The weights at ``place``, under the names of their layout."""
    own = {name.removeprefix(place.prefix): value for name, value in tensors.items() if name.startswith(place.prefix)}
    return {with_scale_name(name): value for name, value in own.items() if not name.endswith(NOT_WEIGHTS)}


def with_scale_name(name: str) -> str:
    """``name`` with the scale of a weight spelled uniformly."""
    stem, _, last = name.rpartition(".")
    return f"{stem}.{SCALES[0]}" if last in SCALES else name
