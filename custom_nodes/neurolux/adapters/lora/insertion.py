"""Puts the layers of a LoRA file beside the layers that they change, and counts those that found their place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...families.spec import Loras
from .changes import SINGLE_VALUES, Change, Factors, NormWeight, change_of, check_magnitude, shaped
from .dialects import FileLayer, flat, spellings
from .modules import norm_layer, norms, put_in
from .rotations import TurnedInputs

NO_SUCH_LAYER = "no such layer in the model"
TWICE = "the same layer under another name"
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

    targets: set[Target] = field(default_factory=set)
    """The model's layers that it changes."""
    placed: dict[str, tuple[FileLayer, Place]] = field(default_factory=dict)
    """The file's layers that are used, by name."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Those that are not, with the reason."""

    @property
    def parts(self) -> list[str]:
        """The components that it changes."""
        return sorted({component for component, _ in self.targets})

    def of(self, part: str) -> set[str]:
        """The layers of one component that it changes."""
        return {layer for component, layer in self.targets if component == part}


class NotUsed(ValueError):
    """A layer of a file that the pack cannot use. The text says why."""


def places_of(pipe: Any, parts: tuple[str, ...], denoiser: str, loras: Loras) -> dict[Target, Place]:
    """Every layer that a LoRA can change, by component and flat name, under diffusers' and under original names."""
    found: dict[Target, Place] = {}
    for part in parts:
        for name, module in getattr(pipe, part).named_modules():
            base = getattr(module, "base_layer", module)
            own = name.replace(".base_layer", "")
            weighted = isinstance(base, norms()) and getattr(base, "weight", None) is not None
            if (weighted or isinstance(base, (torch.nn.Linear, torch.nn.Conv2d))) and "lora_" not in name:
                key = flat(own)
                found[part, key.removeprefix("text_model_") if part != denoiser else key] = Place(((part, own),))
    for original, targets in loras.original_names(getattr(pipe, denoiser)).items():
        known = tuple((denoiser, target) for target in targets)
        if all((denoiser, flat(target)) in found for target in targets):
            found[denoiser, flat(original)] = Place(known, targets == loras.swapped)
            for number, target in enumerate(known if len(known) > 1 else ()):  # OneTrainer numbers the joined layers
                found[denoiser, flat(f"{original}.{number}")] = Place((target,))
    return found


def planned(
    layers: list[FileLayer], pipe: Any, places: Mapping[Target, Place], denoiser: str, widens: str
) -> Insertion:
    """Where each layer of a file goes, by the sizes of its tensors. Raises ValueError for one that does not fit."""
    result = Insertion()
    for layer in layers:
        if not layer.tensors:
            result.left_out[layer.name] = layer.method
            continue
        place = next((places[key] for key in spellings(layer.name, denoiser) if key in places), None)
        if place is None:
            result.left_out[layer.name] = layer.method if layer.foreign else NO_SUCH_LAYER
            continue
        if layer.twice:
            result.left_out[layer.name] = f"two tensors called like {layer.twice}"
            continue
        try:
            changes = changes_at(layer, place, pipe, widens, planned_only=True)
        except NotUsed as error:
            result.left_out[layer.name] = str(error)
            continue
        if any(target in result.targets for target, _ in changes):
            result.left_out[layer.name] = TWICE
            continue
        result.targets |= {target for target, _ in changes}
        result.placed[layer.name] = layer, place
        if layer.unknown:
            result.left_out[layer.name] = f"tensors called {', '.join(layer.unknown)}"
    return result


def changes_at(
    layer: FileLayer, place: Place, pipe: Any, widens: str, *, planned_only: bool = False
) -> list[tuple[Target, Change]]:
    """What a file's layer does to each layer at ``place``; ``planned_only``: without values, on the meta device.

    Raises NotUsed for a layer that the pack cannot use, and ValueError if the sizes differ.
    """
    tensors = layer.tensors
    if set(tensors) == {"bias"} and isinstance(layer_at(pipe, place.targets[0]), norms()):
        tensors = {"b_norm": tensors["bias"]}
    if planned_only:
        tensors = {kind: value if kind in SINGLE_VALUES else value.to("meta") for kind, value in tensors.items()}
    try:
        change = change_of(tensors, layer.settings)
    except (ValueError, RuntimeError, KeyError, IndexError) as error:
        raise NotUsed(str(error)) from error
    return fitted(layer.name, change, place, pipe, widens)


def fitted(name: str, change: Change, place: Place, pipe: Any, widens: str) -> list[tuple[Target, Change]]:
    """The change of each layer at ``place``. Raises ValueError if the sizes differ, NotUsed for a part of a whole."""
    layers = [layer_at(pipe, target) for target in place.targets]
    if isinstance(change.kind, NormWeight) != isinstance(layers[0], norms()):
        raise NotUsed("a change of a norm for another layer, or the reverse")
    outputs, inputs = [size(layer)[0] for layer in layers], size(layers[0])[1]
    try:
        change = shaped(change, tuple(layers[0].kernel_size) if isinstance(layers[0], torch.nn.Conv2d) else ())
    except ValueError as error:
        raise NotUsed(str(error)) from error
    given, kind = change.shape, change.kind
    if place.targets[0][1] == widens and isinstance(kind, Factors) and kind.shape[1] < inputs:
        wide = torch.nn.functional.pad(kind.down, (0, inputs - kind.shape[1]))
        change = replace(change, kind=Factors(wide, kind.up))
    if isinstance(kind, TurnedInputs) and inputs % kind.turns.shape[-1]:
        raise NotUsed(f"blocks of {kind.turns.shape[-1]} for a layer of {inputs} inputs")
    if any(one not in (None, own) for one, own in zip(change.shape, (sum(outputs), inputs), strict=True)):
        raise ValueError(
            f"layer {name} takes {inputs} values and returns {sum(outputs)}, and the file has {given[1]} and {given[0]}"
        )
    rows = torch.arange(sum(outputs))
    if place.swapped:
        rows = torch.cat(rows.chunk(2)[::-1])
    try:
        check_magnitude(change)
        parts = [change] if len(outputs) == 1 and not place.swapped else map(change.chosen, rows.split(outputs))
        return list(zip(place.targets, parts, strict=True))
    except ValueError as error:
        raise NotUsed(str(error)) from error


def layer_at(pipe: Any, target: Target) -> Any:
    """The model's own layer, below what peft has put around it."""
    layer = getattr(pipe, target[0]).get_submodule(target[1])
    return getattr(layer, "base_layer", layer)


def size(layer: Any) -> tuple[int, int]:
    """Outputs and inputs of a layer."""
    if isinstance(layer, torch.nn.Conv2d):
        return layer.out_channels, layer.in_channels // layer.groups
    if isinstance(layer, torch.nn.Linear):
        return layer.out_features, layer.in_features
    return len(layer.weight), len(layer.weight)


def insert(pipe: Any, name: str, plan: Insertion, widens: str, dtype: torch.dtype) -> None:
    """Put a file's layers into the components as the adapter ``name``, which peft switches and scales.

    One layer's values are read after the other. Raises ValueError for a layer whose values cannot be used.
    """
    from peft import LoraConfig, inject_adapter_in_model

    for part in plan.parts:
        component = getattr(pipe, part)
        exactly = "|".join(re.escape(layer) for layer in plan.of(part))
        config = LoraConfig(r=1, lora_alpha=1, target_modules=f"(?:{exactly})", init_lora_weights=True)
        config._register_custom_module(dict.fromkeys(norms(), norm_layer()))
        inject_adapter_in_model(config, component, adapter_name=name)
        component._hf_peft_config_loaded = True
    for layer, place in plan.placed.values():
        for (part, target), change in changes_at(layer, place, pipe, widens):
            put_in(getattr(pipe, part).get_submodule(target), name, change, dtype)


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
