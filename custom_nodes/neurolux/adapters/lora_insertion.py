"""Puts the layers of a LoRA file beside the layers that they change, and counts those that found their place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..families.spec import Loras
from .lora_changes import Change, change_of, shaped
from .lora_dialects import FileLayer, flat, spellings

NO_SUCH_LAYER = "no such layer in the model"
Target = tuple[str, str]
"""A component and a layer in it."""


@dataclass(frozen=True)
class Place:
    """The layers that one layer of a file changes, in the order of its rows."""

    targets: tuple[Target, ...]
    swapped: bool = False
    """Whether the original has the two halves of the rows in the other order."""


@dataclass
class Insertion:
    """What becomes of a file's layers."""

    changes: dict[Target, Change] = field(default_factory=dict)
    placed: list[str] = field(default_factory=list)
    """The file's layers that are used."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Those that are not, with the reason."""

    def of(self, part: str) -> dict[str, Change]:
        """The changes of one component, by layer."""
        return {layer: change for (component, layer), change in self.changes.items() if component == part}


class Kronecker(torch.nn.Module):
    """One side of a Kronecker product of matrices: the inner one first, then the outer one."""

    def __init__(self, weight: torch.Tensor, blocks: int, *, outer: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.blocks, self.outer = blocks, outer

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs)."""
        cut = values.unflatten(-1, (self.blocks, -1))
        return (self.weight @ cut if self.outer else cut @ self.weight.T).flatten(-2)


def places_of(pipe: Any, parts: tuple[str, ...], denoiser: str, loras: Loras) -> dict[Target, Place]:
    """Every layer that a LoRA can change, by component and flat name, under diffusers' and under original names."""
    found: dict[Target, Place] = {}
    for part in parts:
        for name, module in getattr(pipe, part).named_modules():
            base = getattr(module, "base_layer", module)
            own = name.replace(".base_layer", "")
            if isinstance(base, (torch.nn.Linear, torch.nn.Conv2d)) and "lora_" not in name:
                key = flat(own)
                found[part, key.removeprefix("text_model_") if part != denoiser else key] = Place(((part, own),))
    for original, targets in loras.original_names(getattr(pipe, denoiser)).items():
        known = tuple((denoiser, target) for target in targets)
        if all((denoiser, flat(target)) in found for target in targets):
            found[denoiser, flat(original)] = Place(known, targets == loras.swapped)
    return found


def planned(
    layers: list[FileLayer], pipe: Any, places: Mapping[Target, Place], denoiser: str, widens: str
) -> Insertion:
    """Where each layer of a file goes. Raises ValueError for a layer whose size does not fit."""
    result = Insertion()
    for layer in layers:
        if not layer.tensors:
            result.left_out[layer.name] = layer.method
            continue
        place = next((places[key] for key in spellings(layer.name, denoiser) if key in places), None)
        if place is None:
            result.left_out[layer.name] = NO_SUCH_LAYER
            continue
        try:
            change = change_of(layer.tensors)
        except (ValueError, RuntimeError, KeyError) as error:
            result.left_out[layer.name] = str(error)
            continue
        result.changes |= dict(fitted(layer.name, change, place, pipe, widens))
        result.placed.append(layer.name)
        if layer.unknown:
            result.left_out[layer.name] = f"tensors called {', '.join(layer.unknown)}"
    return result


def fitted(name: str, change: Change, place: Place, pipe: Any, widens: str) -> list[tuple[Target, Change]]:
    """The change of each layer at ``place``. Raises ValueError if the sizes differ."""
    layers = [layer_at(pipe, target) for target in place.targets]
    outputs, inputs = [size(layer)[0] for layer in layers], size(layers[0])[1]
    change = shaped(change, tuple(layers[0].kernel_size) if isinstance(layers[0], torch.nn.Conv2d) else ())
    given = change.shape
    if place.targets[0][1] == widens and not change.kron and given[1] < inputs:
        change = Change(torch.nn.functional.pad(change.down, (0, inputs - given[1])), change.up, dora=change.dora)
    if change.shape != (sum(outputs), inputs):
        raise ValueError(
            f"layer {name} takes {inputs} values and returns {sum(outputs)}, and the file has {given[1]} and {given[0]}"
        )
    if place.swapped:
        change = change.swapped()
    found, start = [], 0
    for target, count in zip(place.targets, outputs, strict=True):
        found.append((target, change if len(outputs) == 1 else change.rows(start, count)))
        start += count
    return found


def layer_at(pipe: Any, target: Target) -> Any:
    """The model's own layer, below what peft has put around it."""
    layer = getattr(pipe, target[0]).get_submodule(target[1])
    return getattr(layer, "base_layer", layer)


def size(layer: Any) -> tuple[int, int]:
    """Outputs and inputs of a layer."""
    if isinstance(layer, torch.nn.Conv2d):
        return layer.out_channels, layer.in_channels // layer.groups
    return layer.out_features, layer.in_features


def insert(component: Any, name: str, changes: Mapping[str, Change], dtype: torch.dtype) -> None:
    """Put ``changes`` (by layer) into ``component`` as the adapter ``name``, which peft switches and scales."""
    from peft import LoraConfig, inject_adapter_in_model

    exactly = "|".join(re.escape(layer) for layer in changes)
    dora = any(change.dora is not None for change in changes.values())
    config = LoraConfig(r=1, lora_alpha=1, target_modules=f"(?:{exactly})", use_dora=dora, init_lora_weights=True)
    inject_adapter_in_model(config, component, adapter_name=name)
    component._hf_peft_config_loaded = True
    for layer, change in changes.items():
        wrapped = component.get_submodule(layer)
        device = wrapped.lora_A[name].weight.device
        down, up = change.down.to(device, dtype), change.up.to(device, dtype)
        if change.kron:
            wrapped.lora_A[name] = Kronecker(down.clone(), up.shape[1], outer=False)
            wrapped.lora_B[name] = Kronecker(up.clone(), up.shape[1], outer=True)
        else:
            for side, weight in ((wrapped.lora_A, down), (wrapped.lora_B, up)):
                side[name].weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
            convolution = getattr(wrapped, "base_layer", None)
            if isinstance(convolution, torch.nn.Conv2d):
                set_kernel(wrapped.lora_A[name], down, convolution)
        if change.dora is not None:
            magnitude = wrapped.lora_magnitude_vector[name]
            magnitude.weight = torch.nn.Parameter(change.dora.to(device, dtype).clone(), requires_grad=False)


def set_kernel(layer: Any, weight: torch.Tensor, base: torch.nn.Conv2d) -> None:
    """The first factor of a convolution has its kernel, stride and padding, unless it is a 1x1 one."""
    layer.kernel_size = tuple(weight.shape[2:])
    layer.stride, layer.dilation = base.stride, base.dilation
    layer.padding = base.padding if tuple(weight.shape[2:]) == base.kernel_size else (0, 0)


def inserted(component: Any, name: str) -> set[str]:
    """The layers of ``component`` that the adapter ``name`` changes. Raises ValueError for one without values."""
    found: set[str] = set()
    for layer, module in component.named_modules():
        sides = [getattr(module, side, {}) for side in ("lora_A", "lora_B")]
        if not all(isinstance(side, torch.nn.ModuleDict) and name in side for side in sides):
            continue
        if any(weight.is_meta for side in sides for weight in side[name].parameters()):
            raise ValueError(f"layer {layer} got no values")
        found.add(layer)
    return found
