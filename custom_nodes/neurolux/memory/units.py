"""The tensors of a module in groups that move together: a component's blocks, and everything between them.

Weights never change, so what is in RAM (or in a file) is the master: a group goes to the device by a copy and comes
back by pointing at the master again. Tensors are swapped through ``.data``, so Parameters keep their identity: tied
weights, hooks (diffusers' layerwise casting) and the parameter classes of quantization libraries live on.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, cast

import torch

from ..families.blocks import LEVEL_PARTS, BlockLists
from .backends.choice import backend
from .backends.files import aligned
from .backends.host import same_place
from .pins import PinBudget


@dataclass(eq=False)
class Slot:
    """One tensor and where its module keeps it. ``home`` is its master: in RAM, or mapped from a file."""

    holder: dict[str, torch.Tensor | None]
    name: str
    home: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the master."""
        return self.home.nbytes

    def put(self, data: torch.Tensor) -> None:
        """Let the module use ``data``."""
        tensor = self.holder[self.name]
        if tensor is not None:
            tensor.data = data


@dataclass(eq=False)
class Unit:
    """Tensors that are on the device together: those of ``module``, which needs them from its call to its return."""

    name: str
    module: torch.nn.Module | None
    slots: list[Slot]
    settled: bool = False
    """Whether the masters are on the device."""
    flat: torch.Tensor | None = None
    """The masters one behind the other in memory of their own, so that one copy carries them all; pinned on CUDA."""

    @property
    def nbytes(self) -> int:
        """Bytes of the masters."""
        return sum(slot.nbytes for slot in self.slots)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of a buffer that holds them all."""
        return sum(aligned(slot.nbytes) for slot in self.slots)

    def views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """The tensors' places in ``buffer`` (bytes), in their own types and shapes."""
        views, start = [], 0
        for slot in self.slots:
            home = slot.home
            views.append(buffer[start : start + home.nbytes].view(home.dtype).view(home.shape))
            start += aligned(home.nbytes)
        return views

    def copy_home(self, buffer: torch.Tensor) -> None:
        """Copy the masters into ``buffer``, which is in RAM."""
        for slot, view in zip(self.slots, self.views(buffer), strict=True):
            view.copy_(slot.home)

    def flatten(self, pins: PinBudget) -> torch.Tensor:
        """The masters in one piece of RAM, made once; the modules then use them there, and the first copy is let go.

        Pinned if ``pins`` has room for it.
        """
        if self.flat is None:
            device, size = backend(), self.buffer_bytes
            pin = pins.take(size)
            buffer = device.host_memory(size, pin=pin)
            weakref.finalize(self, device.release, buffer)
            if pin:
                weakref.finalize(self, pins.give_back, size)
            self.copy_home(buffer)
            for slot, view in zip(self.slots, self.views(buffer), strict=True):
                at_home = slot.holder[slot.name]
                if at_home is not None and same_place(at_home, slot.home):
                    at_home.data = view
                slot.home = view
            self.flat = buffer
        return self.flat

    def point_at(self, tensors: Sequence[torch.Tensor]) -> None:
        """Let the modules use ``tensors``."""
        for slot, tensor in zip(self.slots, tensors, strict=True):
            slot.put(tensor)

    def settle(self, device: torch.device) -> None:
        """Have the masters on ``device`` from now on: there it is the same RAM, and two copies would take it twice."""
        for slot in self.slots if not self.settled else ():
            slot.home = slot.home.to(device, copy=True)
            slot.put(slot.home)
        self.settled = True

    def go_home(self) -> None:
        """Let the modules use the masters."""
        self.point_at([slot.home for slot in self.slots])


def tensors_of(
    module: torch.nn.Module, *, recurse: bool = True
) -> Iterator[tuple[dict[str, torch.Tensor | None], str]]:
    """Where ``module`` keeps its tensors: parameters and buffers."""
    for part in module.modules() if recurse else [module]:
        for holder in cast("tuple[dict[str, torch.Tensor | None], ...]", (part._parameters, part._buffers)):
            yield from ((holder, name) for name, tensor in holder.items() if tensor is not None)


def make_unit(name: str, module: torch.nn.Module | None, places: Iterable[tuple[dict, str]]) -> Unit:
    """A unit of the tensors at ``places``; a tensor in several places is moved once."""
    slots: dict[int, Slot] = {}
    for holder, key in places:
        tensor = holder[key]
        slots.setdefault(id(tensor), Slot(holder, key, tensor.data))
    return Unit(name, module, list(slots.values()))


def blocks_of(component: torch.nn.Module, lists: BlockLists) -> list[torch.nn.Module]:
    """The blocks of ``component`` in the order in which they run; empty where there are none."""
    blocks: list[torch.nn.Module] = []
    for path in lists.lists:
        part: Any = component
        for name in path.split("."):
            part = getattr(part, name, None)
        if part is not None:
            blocks += part if isinstance(part, torch.nn.ModuleList) else [part]
    return blocks


def level_parts(level: torch.nn.Module) -> list[torch.nn.Module]:
    """What of a UNet's level is streamed at a time: its resnets, transformer blocks and samplers, in order of use."""
    if not any(isinstance(getattr(level, name, None), torch.nn.ModuleList) for name in LEVEL_PARTS):
        return [level]
    lists: list[Any] = [getattr(level, name, None) or () for name in LEVEL_PARTS]
    resnets, attentions, *samplers = [list(parts) for parts in lists]
    inner = [getattr(part, "transformer_blocks", [part]) for part in attentions]
    pairs = zip_longest(resnets, inner)
    parts = [part for resnet, blocks in pairs for part in (resnet, *(blocks or ()))]
    return [part for part in (*parts, *chain(*samplers)) if part is not None]


def split_into_blocks(component: torch.nn.Module, lists: BlockLists) -> tuple[Unit, list[Unit]]:
    """What must stay on the device while ``component`` works, and what can be streamed, about in order of use.

    A tensor that several parts share stays.
    """
    names = {id(module): name for name, module in component.named_modules()}
    blocks = blocks_of(component, lists)
    parts = [part for block in blocks for part in level_parts(block)] if lists.levels else blocks
    places = {id(part): list(tensors_of(part)) for part in parts}
    users: dict[int, set[int]] = {}
    for part, kept in places.items():
        for holder, name in kept:
            users.setdefault(id(holder[name]), set()).add(part)
    streamed = {tensor for tensor, parts_using in users.items() if len(parts_using) == 1}
    inside = {(id(holder), name) for kept in places.values() for holder, name in kept}
    for holder, name in tensors_of(component):  # an embedding that is tied to a block's weight
        if (id(holder), name) not in inside:
            streamed.discard(id(holder[name]))
    units = [
        make_unit(names[id(part)], part, [place for place in places[id(part)] if id(place[0][place[1]]) in streamed])
        for part in parts
    ]
    rest = [place for place in tensors_of(component) if id(place[0][place[1]]) not in streamed]
    return make_unit("", None, rest), [unit for unit in units if unit.slots]


def split_into_layers(component: torch.nn.Module) -> tuple[Unit, list[Unit]]:
    """As ``split_into_blocks``, layer by layer.

    Tensors of a module that has layers inside stay, because both work at once. So do embeddings: diffusers and
    transformers send token ids to the device of an embedding's weight, which is RAM until the layer is called.
    """
    rest, units = [], []
    for name, module in component.named_modules():
        own = list(tensors_of(module, recurse=False))
        if not own:
            continue
        inner = any(True for child in module.children() for _ in tensors_of(child))
        if inner or isinstance(module, torch.nn.Embedding):
            rest += own
        else:
            units.append(make_unit(name, module, own))
    return make_unit("", None, rest), units
