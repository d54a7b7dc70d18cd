"""What LoRAs, ControlNets and motion adapters add to a plan. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .records import CONTROLNET, MOTION, ComponentShape


def with_adapters(
    shapes: Mapping[str, ComponentShape],
    denoiser: str,
    controls: Sequence[ComponentShape] = (),
    lora_bytes: int = 0,
    motion: ComponentShape | None = None,
) -> dict[str, ComponentShape]:
    """Return ``shapes`` with ControlNets and a motion adapter beside the ``denoiser``, and ``lora_bytes`` of LoRA
    layers in its blocks."""
    found = dict(shapes)
    if lora_bytes:
        found[denoiser] = replace(found[denoiser], lora_bytes=lora_bytes)
    found |= {control_name(index): control for index, control in enumerate(controls)}
    return found if motion is None else found | {MOTION: motion}


def control_name(index: int) -> str:
    """The component name of ControlNet ``index`` in a plan. Counts from 0; a file that is applied twice counts once."""
    return CONTROLNET if index == 0 else f"{CONTROLNET}_{index + 1}"
