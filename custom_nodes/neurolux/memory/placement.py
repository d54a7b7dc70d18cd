"""Puts a pipeline's components where a stage needs them, by a plan and through ComfyUI's memory manager.

- ``resident``: stays on the device after its stage.
- ``stage``: on the device only for its stage; it leaves before another one begins.
- ``stream``: some blocks stay, the others are streamed ahead of use from RAM; ``disk``: from files.
- ``sequential``: every layer is streamed.

Whatever the plan says, the manager may take a part back for another model; it is given again at the next stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import comfy.model_management as mm
import torch

from ..families.blocks import NO_BLOCKS, BlockLists
from ..families.spec import FamilySpec
from ..planning.layout import blocks_on_device
from ..planning.records import (
    ComponentPlan,
    OffloadMode,
    PlacementKind,
    Plan,
    StorageType,
)
from .mapped_weights import map_to_files
from .patcher import ComponentPatcher, managed, unload
from .pins import PinBudget
from .streaming import Residency
from .units import split_into_blocks, split_into_layers

WHOLE = ComponentPlan("fp32", "fp32", "stage", 0, 0)
"""For a component that the plan does not know: there for its stage."""


@dataclass(frozen=True)
class ComponentMemory:
    """Where a component's weights are, measured: its device, the type, bytes in all and on the device."""

    component: str
    device: str
    storage: StorageType
    placement: PlacementKind
    bytes: int
    device_bytes: int


class Placement:
    """The components of one loaded pipeline and the plan that they are placed by."""

    def __init__(
        self, components: Mapping[str, torch.nn.Module], device: torch.device, plan: Plan, family: FamilySpec
    ) -> None:
        self.device = device
        self.plan = plan
        self._family = family
        self._components = dict(components)
        self._pins = PinBudget(lambda: self.plan.pinned_ram)
        self._patchers = {name: self._patcher(name) for name in components}
        self._borrowers = 0

    @property
    def mode(self) -> OffloadMode:
        """The plan's."""
        return self.plan.offload

    def planned(self, name: str) -> ComponentPlan:
        """What the plan says of a component."""
        return self.plan.components.get(name, WHOLE)

    def _patcher(self, name: str) -> ComponentPatcher:
        component, planned = self._components[name], self.planned(name)
        denoises = not name.startswith("text_encoder")
        by_layer = planned.placement == "sequential"
        rest, units = split_into_layers(component) if by_layer else split_into_blocks(component, self._blocks(name))
        by_stage = planned.placement == "stage" and self.plan.offload != "model"  # small ones, counted as in RAM
        mapped = planned.placement == "disk" or (not by_stage and not self.plan.copies_in_ram)
        if mapped:
            map_to_files([rest, *units])
        residency = Residency(
            rest, units, self.device, mapped=mapped, ordered=not by_layer, repeats=denoises, pins=self._pins
        )
        budget = device_budget(residency, planned)
        return ComponentPatcher(component, self.device, torch.device("cpu"), residency=residency, budget=budget)

    def _blocks(self, name: str) -> BlockLists:
        part = self._family.components.get(name)
        return part.part.blocks if part is not None else NO_BLOCKS

    @contextmanager
    def stage(
        self, names: Sequence[str], working_bytes: int, beside: Sequence[ComponentPatcher] = ()
    ) -> Iterator[None]:
        """Have the components ``names`` on the device, with ``working_bytes`` of working memory.

        ``beside``: what works together with them and belongs to no pipeline, ControlNets. The manager is asked once for
        all, or it would evict one for the other.
        """
        self.unload([name for name in self._components if name not in names and not self._stays(name)])
        patchers = [*(self._patchers[name] for name in names), *beside]
        with self.borrowed():
            try:
                mm.load_models_gpu(patchers, memory_required=working_bytes)
                yield
            finally:
                for patcher in patchers:
                    patcher.residency.drop_buffers()

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Nobody drops these components meanwhile, even if the manager takes them off the device."""
        self._borrowers += 1
        try:
            yield
        finally:
            self._borrowers -= 1

    @property
    def busy(self) -> bool:
        """Whether somebody works with the components."""
        return self._borrowers > 0

    def _stays(self, name: str) -> bool:
        """Whether a component remains on the device while others work."""
        planned = self.planned(name)
        if planned.placement in ("stream", "disk"):
            return planned.resident_blocks > 0 or not name.startswith("text_encoder")
        return planned.placement == "resident"

    def in_place(self, name: str) -> bool:
        """Whether all weights of a component are on the device, so that none is streamed."""
        return self._patchers[name].residency.whole

    def prepare(self) -> None:
        """Do what the first image would otherwise wait for: arrange the masters of streamed weights in RAM."""
        for patcher in self._patchers.values():
            patcher.residency.prepare(patcher.budget)

    def load(self) -> None:
        """Place what the plan keeps on the device between stages, or else the component that does the work."""
        names = [name for name in self._components if self._stays(name)]
        with self.stage(names or [self._family.denoiser], 0):
            pass

    def unload(self, names: Sequence[str] | None = None) -> None:
        """Take components (all, unless named) off the device and out of the manager's list."""
        for name in self._patchers if names is None else names:
            patcher = self._patchers[name]
            released = patcher.released
            unload(patcher)
            patcher.released = released  # that was not the manager's wish

    @contextmanager
    def changing(self, names: Sequence[str]) -> Iterator[None]:
        """Let the modules of ``names`` change while the block runs: layers of a LoRA come or go.

        Their weights are home in RAM meanwhile, and what was measured of them is measured anew.
        """
        changed = [name for name in names if name in self._components]
        self._take_apart(changed)
        try:
            yield
        finally:
            self._patchers |= {name: self._patcher(name) for name in changed}

    def follow(self, plan: Plan) -> None:
        """Place by another plan from now on; the weights' types must be the same."""
        moved = any(plan.components.get(name) != self.plan.components.get(name) for name in self._components)
        if moved or plan.copies_in_ram != self.plan.copies_in_ram:
            self._take_apart(list(self._components))
            self.plan = plan
            self._patchers = {name: self._patcher(name) for name in self._components}
        self.plan = plan

    def resize(self, plan: Plan) -> None:
        """Follow ``plan`` in what needs no new arrangement: how many blocks stay, and how the VAE decodes."""
        components = {}
        for name, wanted in plan.components.items():
            planned = self.plan.components.get(name, wanted)
            if name not in self._patchers:  # a ControlNet's
                planned = wanted
            elif planned.placement in ("stream", "disk") and wanted.placement == planned.placement:
                planned = replace(planned, resident_blocks=wanted.resident_blocks)
                self._patchers[name].budget = device_budget(self._patchers[name].residency, planned)
            components[name] = planned
        kept = self.plan
        self.plan = replace(
            plan, offload=kept.offload, precision=kept.precision, components=components,
            copies_in_ram=kept.copies_in_ram, reasons=kept.reasons,
        )  # fmt: skip

    def _take_apart(self, names: Sequence[str]) -> None:
        self.unload(names)
        for name in names:
            self._patchers[name].residency.close()

    def memory(self) -> list[ComponentMemory]:
        """Each component as it is now."""
        return [
            ComponentMemory(
                component=name,
                device=str(patcher.current_loaded_device()),
                storage=self.planned(name).storage,
                placement=self.planned(name).placement,
                bytes=patcher.residency.total_bytes,
                device_bytes=patcher.loaded_size(),
            )
            for name, patcher in list(self._patchers.items())
        ]

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM that the weights take."""
        return sum(patcher.ram_bytes for patcher in list(self._patchers.values()))

    @property
    def released(self) -> bool:
        """Whether the manager (``/free``, an eviction) has taken every component off the device."""
        patchers = list(self._patchers.values())
        return any(patcher.released for patcher in patchers) and not any(patcher.placed for patcher in patchers)

    @property
    def managed(self) -> bool:
        """Whether the manager still lists a component; dropping one that it iterates over would break it."""
        return any(managed(patcher) for patcher in self._patchers.values())

    @property
    def modules(self) -> list[torch.nn.Module]:
        """The components."""
        return list(self._components.values())

    def close(self) -> None:
        """Leave the device for good and let go of the components."""
        self._take_apart(list(self._components))
        self._patchers.clear()
        self._components.clear()


def device_budget(residency: Residency, planned: ComponentPlan) -> float:
    """Bytes that the plan grants a component on the device at work."""
    if planned.placement == "sequential":  # the layers in flight, and nothing else
        return residency.rest.nbytes + 2 * max((unit.buffer_bytes for unit in residency.units), default=0)
    if planned.placement not in ("stream", "disk") or planned.resident_blocks >= len(residency.units):
        return float("inf")
    return residency.rest.nbytes + blocks_on_device(
        [unit.buffer_bytes for unit in residency.units], planned.resident_blocks
    )
