"""A device with as much memory as a test says, for ComfyUI's own memory manager.

``cpu:0`` is not the ``cpu`` that ComfyUI computes on without a GPU, so the manager budgets for it and the pack copies
weights to it, while everything still computes here.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch

DEVICE = torch.device("cpu:0")
RESERVED = 10_000
"""What the manager keeps free beside models: it thinks in gigabytes, these models are below one megabyte."""


class FakeDevice:
    """``memory`` bytes, of which every patcher takes what it says it has loaded."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.patchers: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def free(self) -> int:
        """Bytes that nothing has taken."""
        taken = sum(patcher.loaded_size() for patcher in self.patchers if patcher.load_device == DEVICE)
        return self.memory - taken

    def install(self, monkeypatch: pytest.MonkeyPatch, pack: str = "neurolux") -> None:
        """Have ComfyUI's manager and the pack, whose modules are below ``pack``, take it for the GPU."""
        import comfy.model_management as mm
        import comfy.model_patcher

        costs = import_module(f"{pack}.planning.costs")
        planners = [import_module(f"{pack}.loading.{name}") for name in ("store", "replanning")]
        started = comfy.model_patcher.ModelPatcher.__init__

        def note(patcher: Any, *arguments: Any, **keywords: Any) -> None:
            started(patcher, *arguments, **keywords)
            self.patchers.add(patcher)

        def free_memory(device: Any = None, torch_free_too: bool = False) -> Any:
            return (self.free, 0) if torch_free_too else self.free

        monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "__init__", note)
        monkeypatch.setattr(mm, "get_free_memory", free_memory)
        monkeypatch.setattr(mm, "get_torch_device", lambda: DEVICE)
        monkeypatch.setattr(mm, "is_device_cpu", lambda device: device == torch.device("cpu"))
        monkeypatch.setattr(mm, "vram_state", mm.VRAMState.NORMAL_VRAM)
        monkeypatch.setattr(mm, "minimum_inference_memory", lambda: RESERVED)
        monkeypatch.setattr(mm, "extra_reserved_memory", lambda: RESERVED)
        for room in ("encode_bytes", "sample_bytes", "decode_bytes", "encode_image_bytes"):
            monkeypatch.setattr(costs, room, lambda *_, **__: RESERVED)
        monkeypatch.setattr(costs, "largest_layer", lambda *_, **__: 0)
        monkeypatch.setattr(costs, "RESERVE_BYTES", RESERVED)
        machine = planners[0].this_machine

        def this_machine(device: torch.device, droppable_ram: int = 0) -> Any:
            return replace(machine(torch.device("cpu"), droppable_ram), device="cuda", free_vram=self.memory, bf16=True)

        for planner in planners:
            monkeypatch.setattr(planner, "this_machine", this_machine)


class StockModel(torch.nn.Module):
    """A model of ComfyUI's own kind: layers that its patcher can place one by one and cast."""

    def __init__(self, layers: int = 8, width: int = 64) -> None:
        import comfy.ops

        super().__init__()
        ops = comfy.ops.manual_cast
        self.layers = torch.nn.ModuleList(ops.Linear(width, width, dtype=torch.float32) for _ in range(layers))
        self.device = torch.device("cpu")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return hidden


def stock_patcher(layers: int = 8) -> Any:
    """A stock model, as a stock loader node hands it on."""
    from comfy.model_patcher import ModelPatcher

    model = StockModel(layers).requires_grad_(False)
    for layer in model.layers:
        torch.nn.init.normal_(layer.weight, std=0.1)  # pyright: ignore[reportArgumentType]
        torch.nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return ModelPatcher(model, DEVICE, torch.device("cpu"))
