"""What LoRAs and ControlNets add to a plan. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .records import CONTROLNET, ComponentShape


def with_adapters(
    shapes: Mapping[str, ComponentShape], denoiser: str, controls: Sequence[ComponentShape] = (), lora_bytes: int = 0
) -> dict[str, ComponentShape]:
    """``shapes``, with ControlNets beside the ``denoiser`` and LoRAs of ``lora_bytes`` in its blocks."""
    found = dict(shapes)
    if lora_bytes:
        found[denoiser] = replace(found[denoiser], lora_bytes=lora_bytes)
    found |= {control_name(index): control for index, control in enumerate(controls)}
    return found


def control_name(index: int) -> str:
    """What plans call ControlNet ``index``, counted from 0, files that come twice once."""
    return CONTROLNET if index == 0 else f"{CONTROLNET}_{index + 1}"
