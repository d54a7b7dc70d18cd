"""One component of a pipeline, as ComfyUI's memory manager sees it.

``comfy.model_management`` moves what is in its list of loaded models and nothing else: a pipeline that it does not
know is invisible to eviction, to ``/free``, to the Unload button and to the out-of-memory path (ComfyUI issue 5536).
A plain ModelPatcher cannot carry diffusers modules, because it places layer by layer and gives those that do not fit
a cast that diffusers layers do not have (model_patcher.py, ``load``). So this one places blocks and streams the rest.
"""

from __future__ import annotations

import comfy.model_management as mm
import comfy.model_patcher
import torch

from ..families.blocks import NO_BLOCKS, BlockLists
from .streaming import Residency
from .units import split_into_blocks


class ComponentPatcher(comfy.model_patcher.ModelPatcher):
    """Places a ``torch.nn.Module`` on the load device, as far as ``budget`` bytes and the manager allow.

    ``residency`` says what can be streamed; unless given, the ``blocks`` can. Weights never change, so leaving the
    device costs no transfer (diffusers' own model offload copies every byte back, its PR 11682).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        load_device: torch.device,
        offload_device: torch.device,
        *,
        residency: Residency | None = None,
        blocks: BlockLists = NO_BLOCKS,
        budget: float = float("inf"),
    ) -> None:
        self.residency = residency or Residency(*split_into_blocks(model, blocks), load_device)
        super().__init__(model, load_device, offload_device, size=1)
        self.budget = budget
        """Bytes that the component may take on the device at work, by the plan."""
        self.released = False
        """The manager has asked for the memory back since the component was last placed."""

    @property
    def placed(self) -> bool:
        """Whether it is ready to work on the device."""
        return self.residency.placed

    def model_size(self) -> int:
        """What it takes on the device at work; the manager frees that much, not what is streamed."""
        return max(1, int(min(self.residency.total_bytes, self.budget)))

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM that the masters take."""
        return 0 if self.residency.mapped else self.residency.total_bytes

    def loaded_size(self) -> int:
        return self.residency.device_bytes

    def current_loaded_device(self) -> torch.device:
        return self.load_device if self.placed else self.offload_device

    def model_dtype(self) -> None:
        """diffusers modules keep the formats they were loaded in; the base class would ask a Comfy model."""

    def load(self, device_to: torch.device | None = None, *_: object, **__: object) -> None:
        """Place as much as the plan allows."""
        self.residency.place(self.budget)
        self.released = False

    def patch_model(self, device_to: torch.device | None = None, *_: object, **__: object) -> torch.nn.Module:
        self.load(device_to)
        return self.model

    def unpatch_model(self, device_to: torch.device | None = None, unpatch_weights: bool = True) -> None:
        if unpatch_weights:
            self.residency.leave()

    def partially_load(self, device_to: torch.device, extra_memory: float = 0, *_: object, **__: object) -> int:
        """Take up to ``extra_memory`` bytes more, within the plan; a negative number gives some back.

        The manager means bytes of weights alone: it has already set aside what the stage works with. Returns the
        bytes that were added.
        """
        before = self.loaded_size()
        if extra_memory < 0 and self.placed:
            self.residency.release(int(-extra_memory))
        else:
            self.residency.place(min(self.budget, before + extra_memory))
        self.released = False
        return max(0, self.loaded_size() - before)

    def partially_unload(self, device_to: torch.device, memory_to_free: float = 0, *_: object, **__: object) -> int:
        """Send blocks home until ``memory_to_free`` bytes are free, if there are so many; returns what was freed.

        Where it was less, the manager then detaches the whole component.
        """
        return self.residency.release(int(memory_to_free)) if self.placed else 0

    def detach(self, unpatch_all: bool = True) -> torch.nn.Module:
        """Leave the device. ``unpatch_all=False`` is the manager putting the entry aside to load it again."""
        if unpatch_all:
            self.unpatch_model(self.offload_device)
            self.released = True
        return self.model

    def __del__(self) -> None:
        """Nothing to undo: the base class would unpin and detach weights that this class never touched."""


def managed(patcher: ComponentPatcher) -> bool:
    """Whether the manager still lists ``patcher``; dropping one that it iterates over would break it."""
    return any(loaded.model is patcher for loaded in list(mm.current_loaded_models))


def evicted(patcher: ComponentPatcher) -> bool:
    """Whether the manager took the component off its device for good: it may be dropped."""
    return patcher.released and not managed(patcher)


def unload(patcher: ComponentPatcher) -> None:
    """Take one patcher out of the manager's list and off its device."""
    for index in reversed(range(len(mm.current_loaded_models))):
        if mm.current_loaded_models[index].model is patcher:
            mm.current_loaded_models.pop(index).model_unload()
