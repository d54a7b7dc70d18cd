"""One dry run: a model loaded by its plan and one image made, and what that took."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..catalog.models import Model
from ..catalog.reading import read_catalog
from ..families.registry import family_of
from ..loading.handle import LoadSpec, PipelineHandle
from ..loading.loaded import LoadedPipeline
from ..loading.store import PipelineStore
from ..memory.backends.choice import replaced
from ..planning.costs import CONTEXT_BYTES, CONVOLUTION_BYTES, RESERVE_BYTES, SYSTEM_RAM_BYTES
from ..planning.records import Plan, gigabytes
from ..stages.decode import decode
from ..stages.embedding_cache import embedding_cache
from ..stages.encode import encode
from ..stages.sample import plan_sample, sample
from ..weights.quantize import nf4_pairs
from .card import Faults, SimulatedMachine
from .clocks import Hazard
from .device import SimulatedBackend, believed_by_the_manager
from .source import ArchitectureSource
from .tensors import no_modes, simulated_tensors

UNCOUNTED_BYTES = RESERVE_BYTES + CONVOLUTION_BYTES
"""What plans set aside for the workspaces of kernels, which a dry run does not have."""
LOOSEST = 1.25
"""A plan may predict so much more than there was: beyond that, memory is left unused."""
PROMPT = "a red fox in the snow"


@dataclass(frozen=True)
class Case:
    """What to run, on which machine."""

    model: str
    vram: int
    ram: int
    offload: str = "auto"
    precision: str = "auto"
    side: int | None = None
    capability: tuple[int, int] = (8, 6)
    task: str = "text-to-image"
    guidance: float = -1.0
    images: int = 1
    steps: int = 1
    faults: Faults = field(default_factory=Faults, hash=False, compare=False)


@dataclass
class Outcome:
    """What a dry run counted, in bytes."""

    case: Case
    plan: Plan
    card: int = 0
    """The most on the card at once."""
    ram: int = 0
    """The most in RAM at once, pinned and not, without what is mapped."""
    pinned: int = 0
    to_card: int = 0
    unpinned_to_card: int = 0
    left_on_card: int = 0
    """After the model was dropped."""
    left_in_ram: int = 0
    hazards: list[Hazard] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stages: dict[str, int] = field(default_factory=dict)
    """The most on the card, by stage."""
    finished_with: Plan | None = None
    """The plan at the end, if memory ran out meanwhile."""

    def problems(self) -> Iterator[str]:
        """What a plan must hold and does not, one sentence each."""
        plan, case = self.plan, self.case
        free_card = case.vram - CONTEXT_BYTES
        free_ram = case.ram - min(SYSTEM_RAM_BYTES, case.ram // 4)
        if self.card > plan.peak_vram:
            yield f"{gigabytes(self.card)} on the card, planned were {gigabytes(plan.peak_vram)}"
        if plan.fits and plan.peak_vram > free_card:
            yield f"planned are {gigabytes(plan.peak_vram)} of a card with {gigabytes(free_card)}"
        if self.ram > plan.peak_ram:
            yield f"{gigabytes(self.ram)} in RAM, planned were {gigabytes(plan.peak_ram)}"
        if self.ram > free_ram:
            yield f"{gigabytes(self.ram)} in RAM of {gigabytes(free_ram)}"
        if plan.peak_vram - UNCOUNTED_BYTES > LOOSEST * self.card:
            yield f"planned are {gigabytes(plan.peak_vram)} for {gigabytes(self.card)} on the card"
        if self.left_on_card or self.left_in_ram:
            yield f"after the drop {gigabytes(self.left_on_card + self.left_in_ram)} are left"
        if self.hazards:
            yield f"{len(self.hazards)} copies may come too early: {self.hazards[0]}"


class DryRun:
    """A simulated machine, and a store of models on it."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self.machine = machine
        self.backend = SimulatedBackend(machine)
        self.store = PipelineStore(ArchitectureSource(self.backend))

    @contextmanager
    def running(self) -> Iterator[DryRun]:
        """Everything of the pack runs on the simulated machine meanwhile."""
        forget()
        with replaced(self.backend), believed_by_the_manager(self.backend), simulated_tensors(self.machine):
            try:
                yield self
            finally:
                self.store.clear()
                forget()

    def handle(self, model: Model, case: Case) -> PipelineHandle:
        """A link to ``model``."""
        return PipelineHandle(LoadSpec(model.name, (), model.variant(0), case.precision, case.offload), model)

    def load(self, handle: PipelineHandle) -> LoadedPipeline:
        """Load it, unless it is loaded."""
        with torch.no_grad():  # inference mode would hide what composite operations allocate inside
            return self.store.acquire(handle)


def forget() -> None:
    """Drop what the process keeps between models: fake tensors and real ones must not meet there."""
    embedding_cache.clear()
    nf4_pairs.cache_clear()


def run_case(case: Case) -> Outcome:
    """Load the model, make images (each with a new prompt), drop it, and say what that took."""
    model = read_catalog().models[case.model]
    machine = SimulatedMachine(case.vram, case.ram, capability=case.capability, faults=case.faults)
    dry = DryRun(machine)
    with dry.running():
        handle = dry.handle(model, case)
        loaded = dry.load(handle)
        outcome = Outcome(case, loaded.placement.plan)
        stages = outcome.stages

        def note(stage: str) -> None:
            stages[stage] = max(stages.get(stage, 0), machine.peak_card)
            outcome.card = max(outcome.card, machine.peak_card)
            outcome.ram = max(outcome.ram, machine.peak_ram)
            outcome.pinned = max(outcome.pinned, machine.peak_pinned)
            machine.reset_peaks()

        note("load")
        for number in range(case.images):
            make_image(loaded, case, f"{PROMPT}, number {number}", note)
        outcome.finished_with = loaded.placement.plan
        outcome.warnings = loaded.take_warnings()
        outcome.to_card, outcome.unpinned_to_card = machine.to_card, machine.unpinned_to_card
        del loaded, handle
        dry.store.clear()
        forget()
        outcome.left_on_card = machine.alive["card"]
        outcome.left_in_ram = machine.alive["ram"] + machine.alive["pinned"]
    gc.collect()
    outcome.hazards = list(machine.hazards)
    return outcome


def make_image(loaded: LoadedPipeline, case: Case, prompt: str, note: Any) -> None:
    """Encode, sample, decode."""
    model = loaded.model
    width = case.side or model.defaults.width
    height = case.side or model.defaults.height
    scale, channels = family_of(model.family).latent.scale, family_of(model.family).latent.channels
    with torch.no_grad():  # inference mode would hide what composite operations allocate inside
        positive = encode(loaded, prompt)
        note("encode")
        with no_modes():
            latent = {"samples": torch.zeros(1, channels, height // scale, width // scale)}
            request = plan_sample(model, loaded.spec.variant, latent, 1, 0, case.guidance)
        request = replace(request, steps=case.steps, running=case.steps)
        made = sample(loaded, request, positive, None)
        note("sample")
        decode(loaded, made)
        note("decode")
