"""One dry run: a model loaded by its plan and one image made, and what that took."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from ..catalog.models import Model
from ..catalog.reading import read_catalog
from ..errors import InvalidParameter
from ..families.spec import Architecture
from ..loading.handle import LoadSpec, PipelineHandle
from ..loading.loaded import LoadedPipeline
from ..loading.store import PipelineStore
from ..memory.backends.choice import replaced
from ..memory.module_store import modules
from ..stages.prompts.embedding_cache import embedding_cache
from ..weights.quantized.storage import nf4_pairs
from .architectures import known_architectures
from .card import SimulatedMachine
from .device import CARD, SimulatedBackend, believed_by_the_manager
from .records import Case, Outcome
from .source import ArchitectureSource
from .tasks import WORK
from .tensors import simulated_tensors

PROMPT = "a red fox in the snow"


@dataclass(frozen=True)
class Subject:
    """A model, and how it is made without weights."""

    model: Model
    architecture: Architecture

    @classmethod
    def of_catalog(cls, name: str) -> Subject:
        """The catalog's model of that name. Raises InvalidParameter for one whose architecture is unknown."""
        known = known_architectures()
        if name not in known:
            raise InvalidParameter("model", f"a dry run knows {', '.join(known)}, and no {name!r}")
        return cls(read_catalog().models[name], known[name])


class DryRun:
    """A simulated machine, and a store of models on it."""

    def __init__(self, machine: SimulatedMachine, subject: Subject) -> None:
        self.machine, self.subject = machine, subject
        self.backend = SimulatedBackend(machine)
        self.store = PipelineStore(ArchitectureSource(self.backend, {subject.model.name: subject.architecture}))

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

    def handle(self, case: Case) -> PipelineHandle:
        """A link to the model."""
        model = self.subject.model
        return PipelineHandle(LoadSpec(model.name, (), model.variant(0), case.precision, case.offload), model)

    def load(self, handle: PipelineHandle) -> LoadedPipeline:
        """Load it, unless it is loaded."""
        with torch.no_grad():  # inference mode would hide what composite operations allocate inside
            return self.store.acquire(handle)


def forget() -> None:
    """Drop what the process keeps between models: fake tensors and real ones must not meet there."""
    embedding_cache.clear()
    nf4_pairs.cache_clear()
    for key in modules.keys():  # noqa: SIM118 - a method of the store
        if key.device == CARD:
            modules.drop(key)


def run_case(case: Case, subject: Subject | None = None) -> Outcome:
    """Load the model (the catalog's unless another is given), make images (each with a new prompt), drop it, and say
    what that took."""
    subject = subject or Subject.of_catalog(case.model)
    if case.upcast_vae is not None:
        subject = replace(subject, model=replace(subject.model, force_upcast_vae=case.upcast_vae))
    machine = SimulatedMachine(case.vram, case.ram, capability=case.capability, faults=case.faults)
    dry = DryRun(machine, subject)
    with dry.running():
        handle = dry.handle(case)
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
            WORK[case.task](loaded, case, f"{PROMPT}, number {number}", note)
        outcome.rooms = list(machine.rooms)
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
