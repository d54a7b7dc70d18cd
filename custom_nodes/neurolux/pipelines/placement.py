"""Puts a pipeline's components where a stage needs them, through ComfyUI's memory manager.

- ``none``: all components on the device together.
- ``model``: only those of the current stage; the others leave first, so the peak is the largest of them.
- ``sequential``: accelerate's hooks bring one layer at a time; the manager makes room for the activations.

On a CPU the three are the same, and ComfyUI's manager still knows the components.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import comfy.model_management as mm
import torch

from .offload import OffloadMode
from .patcher import ComponentPatcher


class Placement:
    """The components of one loaded pipeline and the mode that they are placed in."""

    def __init__(self, components: Mapping[str, torch.nn.Module], device: torch.device, mode: OffloadMode) -> None:
        self.device = device
        self.mode: OffloadMode = mode
        self._components = dict(components)
        resident = mode != "sequential"
        self._patchers = {
            name: ComponentPatcher(component, device, torch.device("cpu"), resident=resident)
            for name, component in components.items()
        }
        if mode == "sequential":
            self._hook()

    @contextmanager
    def stage(self, names: Sequence[str], working_bytes: int) -> Iterator[None]:
        """Have the components ``names`` on the device, with ``working_bytes`` of room for activations."""
        if self.mode == "sequential":
            largest = max(largest_layer(self._components[name]) for name in names)
            mm.free_memory(working_bytes + largest, self.device)
            mm.load_models_gpu(list(self._patchers.values()), memory_required=working_bytes)
        elif self.mode == "model" and self.device.type != "cpu":
            self.unload(except_for=names)
            mm.load_models_gpu([self._patchers[name] for name in names], memory_required=working_bytes)
        else:
            mm.load_models_gpu(list(self._patchers.values()), memory_required=working_bytes)
        try:
            yield
        except BaseException:
            if self.mode == "sequential":
                self._hook()  # an exception inside a layer leaves its weights on the device
            raise

    def load(self) -> None:
        """Place what the mode keeps on the device between stages: everything, or the component that does the work."""
        names = [name for name in self._components if name in ("transformer", "unet")]
        with self.stage(names, working_bytes=0):
            pass

    def unload(self, except_for: Sequence[str] = ()) -> None:
        """Take components off the device and out of the manager's list."""
        leaving = [patcher for name, patcher in self._patchers.items() if name not in except_for]
        for index in reversed(range(len(mm.current_loaded_models))):
            if any(mm.current_loaded_models[index].model is patcher for patcher in leaving):
                mm.current_loaded_models.pop(index).model_unload()

    @property
    def released(self) -> bool:
        """Whether the manager (``/free``, an eviction) has taken every component off the device."""
        patchers = self._patchers.values()
        return any(patcher.released for patcher in patchers) and not any(patcher.placed for patcher in patchers)

    @property
    def managed(self) -> bool:
        """Whether the manager still lists a component; dropping one that it iterates over would break it."""
        return any(
            loaded.model is patcher for loaded in list(mm.current_loaded_models) for patcher in self._patchers.values()
        )

    def close(self) -> None:
        """Leave the device for good and let go of the components."""
        self.unload()
        if self.mode == "sequential":
            self._unhook()
        self._patchers.clear()
        self._components.clear()

    def _hook(self) -> None:
        """Stream every component layer by layer, as diffusers' ``enable_sequential_cpu_offload`` does."""
        from accelerate import cpu_offload

        self._unhook()
        with torch.inference_mode(False), torch.no_grad():
            for component in self._components.values():
                cpu_offload(component, self.device, offload_buffers=len(component._parameters) > 0)

    def _unhook(self) -> None:
        from accelerate.hooks import remove_hook_from_module

        with torch.inference_mode(False), torch.no_grad():
            for component in self._components.values():
                remove_hook_from_module(component, recurse=True)
                component.to("cpu")


def largest_layer(component: torch.nn.Module) -> int:
    """Bytes of the largest module that owns weights itself: what sequential offload holds at a time."""
    return max(
        (sum(weight.nbytes for weight in module.parameters(recurse=False)) for module in component.modules()), default=0
    )
