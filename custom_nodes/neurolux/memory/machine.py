"""What this machine can hold and do, measured: what a plan is made from."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import comfy.model_management as mm
import psutil
import torch

from ..planning.records import ACCELERATORS, Machine
from .units import host_memory, release_host_memory

PROBE_BYTES = 64 << 20
PROBES = 4


def this_machine(device: torch.device, droppable_ram: int = 0) -> Machine:
    """The machine with ``device``, and what ComfyUI's command line says of it (``--force-fp32`` and the like).

    ``droppable_ram``: bytes that loaded pipelines could give back. What the manager could evict from the device counts
    as free.
    """
    machine = Machine(
        device=device.type,
        free_vram=reclaimable_memory(device) if device.type in ACCELERATORS else 0,
        free_ram=psutil.virtual_memory().available + droppable_ram,
        bf16=bool(mm.should_use_bf16(device)),
        fp16=bool(mm.should_use_fp16(device)),
    )
    return replace(machine, transfer_rate=transfer_rate(device)) if device.type == "cuda" else machine


def reclaimable_memory(device: torch.device) -> int:
    """Free memory of ``device``, and what the manager could free by evicting the models that it holds there."""
    held = sum(loaded.model.loaded_size() for loaded in mm.current_loaded_models if loaded.device == device)
    return int(mm.get_free_memory(device)) + held


@cache
def transfer_rate(device: torch.device) -> float:
    """Bytes a second from pinned RAM to a CUDA device."""
    source = host_memory(PROBE_BYTES, pin=True)
    target = torch.empty(PROBE_BYTES, dtype=torch.uint8, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    target.copy_(source)
    start.record()
    for _ in range(PROBES):
        target.copy_(source, non_blocking=True)
    end.record()
    end.synchronize()
    release_host_memory(source)
    return PROBES * PROBE_BYTES / (start.elapsed_time(end) / 1000)
