"""One component of a pipeline, as ComfyUI's memory manager sees it.

``comfy.model_management`` moves what is in its list of loaded models and nothing else: a pipeline that it does not
know is invisible to eviction, to ``/free``, to the Unload button and to the out-of-memory path (ComfyUI issue 5536).
A plain ModelPatcher cannot carry diffusers modules, because it places layer by layer and gives those that do not fit
a cast that diffusers layers do not have (model_patcher.py, ``load``). So a component is placed whole or not at all.
"""

from __future__ import annotations

import comfy.model_patcher
import torch


class ComponentPatcher(comfy.model_patcher.ModelPatcher):
    """Places one ``torch.nn.Module`` whole on the load device, and takes it back.

    The weights never change, so on CUDA the copy in RAM is kept and put back: leaving the GPU costs no transfer
    (diffusers' own model offload copies every byte back, its PR 11682). ``resident=False`` makes a patcher for a module
    that hooks stream in by themselves: the manager learns that it exists and can ask for its release.
    """

    def __init__(
        self, model: torch.nn.Module, load_device: torch.device, offload_device: torch.device, *, resident: bool = True
    ) -> None:
        size = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]) if resident else 1
        super().__init__(model, load_device, offload_device, size=max(size, 1))
        self.resident = resident
        self.placed = False
        self.released = False
        """The manager has asked for the memory back since the component was last placed."""
        self._in_ram: list[tuple[torch.Tensor, torch.Tensor]] = []

    def loaded_size(self) -> int:
        return self.model_size() if self.placed else 0

    def current_loaded_device(self) -> torch.device:
        return self.load_device if self.placed else self.offload_device

    def model_dtype(self) -> None:
        """diffusers modules keep the formats they were loaded in; the base class would ask a Comfy model."""

    def load(self, device_to: torch.device | None = None, *_: object, **__: object) -> None:
        if self.placed:
            return
        device = device_to or self.load_device
        with torch.inference_mode(False), torch.no_grad():
            if self.resident and device.type == "cuda":
                self._load_copy(device)
            elif self.resident:
                self.model.to(device)
        self.placed, self.released = True, False

    def _load_copy(self, device: torch.device) -> None:
        tensors = {id(tensor): tensor for tensor in [*self.model.parameters(), *self.model.buffers()]}
        try:
            for tensor in tensors.values():
                in_ram = tensor.data
                tensor.data = in_ram.to(device, copy=True)
                self._in_ram.append((tensor, in_ram))
        except BaseException:
            self._put_back()
            raise

    def _put_back(self) -> None:
        for tensor, in_ram in self._in_ram:
            tensor.data = in_ram
        self._in_ram.clear()

    def patch_model(self, device_to: torch.device | None = None, *_: object, **__: object) -> torch.nn.Module:
        self.load(device_to)
        return self.model

    def unpatch_model(self, device_to: torch.device | None = None, unpatch_weights: bool = True) -> None:
        if not unpatch_weights or not self.placed:
            return
        with torch.inference_mode(False), torch.no_grad():
            if self._in_ram:
                self._put_back()
            elif self.resident:
                self.model.to(device_to or self.offload_device)
        self.placed = False

    def partially_load(self, device_to: torch.device, *_: object, **__: object) -> int:
        """Whole or not at all; returns the bytes that were added."""
        before = self.loaded_size()
        self.load(device_to)
        return self.loaded_size() - before

    def partially_unload(self, device_to: torch.device, memory_to_free: int = 0, *_: object, **__: object) -> int:
        """Nothing is freed in part: the manager then detaches the component and drops it from its list."""
        return 0

    def detach(self, unpatch_all: bool = True) -> torch.nn.Module:
        """Leave the device. ``unpatch_all=False`` is the manager putting the entry aside to load it again."""
        if unpatch_all:
            self.unpatch_model(self.offload_device)
            self.released = True
        return self.model

    def __del__(self) -> None:
        """Nothing to undo: the base class would unpin and detach weights that this class never touched."""
