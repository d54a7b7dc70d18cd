"""What this machine can hold and do, measured: what a plan is made from."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management as mm
import torch

from ..planning.records import ACCELERATORS, Machine
from .backends.choice import backend
from .manager import core_pinned_copies


def this_machine(device: torch.device, droppable_ram: int = 0) -> Machine:
    """The machine with ``device``, and what ComfyUI's command line says of it (``--force-fp32`` and the like).

    ``droppable_ram``: bytes that loaded pipelines could give back. What the manager could evict from the device counts
    as free, and so do core's copies in pinned RAM.
    """
    asked = backend()
    machine = Machine(
        device=device.type,
        free_vram=reclaimable_memory(device) if device.type in ACCELERATORS else 0,
        free_ram=asked.host().available + core_pinned_copies() + droppable_ram,
        bf16=asked.computes_bf16(device),
        fp16=asked.computes_fp16(device),
    )
    rate = asked.transfer_rate(device)
    return machine if rate is None else replace(machine, transfer_rate=rate)


def reclaimable_memory(device: torch.device) -> int:
    """Free memory of ``device``, and what the manager could free by evicting the models that it holds there."""
    held = sum(loaded.model.loaded_size() for loaded in mm.current_loaded_models if loaded.device == device)
    return backend().free_memory(device) + held
