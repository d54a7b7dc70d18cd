"""What this machine can hold and do, measured: what a plan is made from."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management as mm
import torch

from ..planning.cards import ACHIEVED_SHARE, find_card
from ..planning.costs import CONTEXT_BYTES, SYSTEM_RAM_BYTES
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
    card = find_card(asked.name(device)) if machine.own_memory else None
    if card is not None:  # ComfyUI's command line says which formats it computes in
        machine = replace(card.described(machine), bf16=machine.bf16, fp16=machine.fp16)
    rate, product = asked.transfer_rate(device), asked.compute_rate(device)
    if rate is not None:
        machine = replace(machine, transfer_rate=rate)
    if product is not None:
        in_fp32 = product * ACHIEVED_SHARE if not (machine.bf16 or machine.fp16) else machine.fp32_rate
        machine = replace(
            machine, compute_rate=product * ACHIEVED_SHARE, fp32_rate=in_fp32, rates_from="measured"
        )  # fmt: skip
    return machine


def whole_machine(device: torch.device) -> Machine:
    """The machine with ``device`` and nothing else in its memory. Measures nothing, so it is always the same."""
    asked = backend()
    vram = max(0, asked.total_memory(device) - CONTEXT_BYTES) if device.type in ACCELERATORS else 0
    ram = asked.host().total
    machine = Machine(
        device.type,
        vram,
        max(0, ram - min(SYSTEM_RAM_BYTES, ram // 4)),
        bf16=asked.computes_bf16(device),
        fp16=asked.computes_fp16(device),
    )
    card = find_card(asked.name(device)) if machine.own_memory else None
    return replace(card.described(machine), bf16=machine.bf16, fp16=machine.fp16) if card is not None else machine


def reclaimable_memory(device: torch.device) -> int:
    """Free memory of ``device``, and what the manager could free by evicting the models that it holds there."""
    held = sum(loaded.model.loaded_size() for loaded in mm.current_loaded_models if loaded.device == device)
    return backend().free_memory(device) + held
