"""Published models with few of their layers: each layer has its full size, so that memory is planned, streamed and
freed as ever, in a fraction of the time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from neurolux.dry_run.run import Subject

FEW = {"num_layers": 2, "num_single_layers": 3, "layers_per_block": 1, "transformer_layers_per_block": 1}
FEW_IN_ENCODERS = 3


@cache
def short(name: str) -> Subject:
    """The catalog's model ``name`` with few layers."""
    from neurolux.dry_run.architectures import known_architectures
    from neurolux.dry_run.run import Subject
    from neurolux.families.parts.architectures import on_meta
    from neurolux.families.registry import family_of

    subject = Subject.of_catalog(name)
    makes = {part: shorter(make) for part, make in known_architectures()[name].items()}
    lists = {part: component.part.blocks for part, component in family_of(subject.model.family).components.items()}
    shapes = {part: shape_of(on_meta(make), lists[part]) for part, make in makes.items()}
    kept = {part: replace(shapes[part], stored=known.stored) for part, known in subject.model.components.items()}
    return Subject(replace(subject.model, components=kept), makes)


def shorter(make: Callable[[], Any]) -> Callable[[], Any]:
    """Makes the same module with few layers."""

    def made() -> Any:
        with torch.device("meta"):
            module = make()
        if hasattr(module.config, "num_hidden_layers"):
            config = copy.deepcopy(module.config)
            config.num_hidden_layers = FEW_IN_ENCODERS
            return type(module)(config)
        return type(module).from_config(
            module.config, **{name: few for name, few in FEW.items() if name in module.config}
        )

    return made


def shape_of(module: Any, lists: Any) -> Any:
    """A module as a plan counts it."""
    from neurolux.memory.units import split_into_blocks
    from neurolux.planning.records import ComponentShape

    _, units = split_into_blocks(module, lists)
    blocks = tuple(sum(slot.home.numel() for slot in unit.slots) for unit in units)
    return ComponentShape(sum(weight.numel() for weight in module.parameters()), blocks)
