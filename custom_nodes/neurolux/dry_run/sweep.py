"""Memory that runs out at each allocation of an image in turn: it is survived, or the error says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import OutOfMemory
from ..loading.loaded import LoadedPipeline
from .card import SimulatedMachine
from .records import Case
from .run import DryRun, Subject, forget
from .tasks import WORK

REMEDIES = ("Choose", "Use a smaller")
LEFT_BYTES = 1024
"""What may stay on the card after a drop: the steps of the caller's scheduler."""


@dataclass
class Sweep:
    """One model on one machine, asked for images while memory runs out."""

    case: Case
    subject: Subject
    every: int = 1
    """Which share of the allocations: 1 for all of them, 100 for each hundredth."""
    tried: int = 0
    survived: int = 0
    problems: list[str] = field(default_factory=list)
    _images: int = 0

    def run(self) -> Sweep:
        """Try all of them."""
        machine = SimulatedMachine(self.case.vram, self.case.ram, capability=self.case.capability)
        dry = DryRun(machine, self.subject)
        with dry.running():
            handle = dry.handle(self.case)
            pipeline = dry.load(handle)
            self._image(pipeline)
            for number in self._numbers(machine, pipeline):
                if pipeline.leaner:  # the next one begins from the first plan again
                    del pipeline
                    dry.store.clear()
                    forget()
                    pipeline = dry.load(handle)
                    self._image(pipeline)
                self._try(machine, pipeline, number)
            del pipeline, handle
            dry.store.clear()
            forget()
            if machine.alive["card"] > LEFT_BYTES:
                self.problems.append(f"{machine.alive['card']} bytes are left on the card")
        self.problems += [str(hazard) for hazard in machine.hazards]
        return self

    def _numbers(self, machine: SimulatedMachine, pipeline: LoadedPipeline) -> Iterator[int]:
        before = machine.allocations
        self._image(pipeline)
        yield from range(1, machine.allocations - before + 1, self.every)

    def _image(self, pipeline: LoadedPipeline) -> None:
        self._images += 1
        WORK[self.case.task](pipeline, self.case, f"number {self._images}", lambda stage: None)

    def _try(self, machine: SimulatedMachine, pipeline: LoadedPipeline, number: int) -> None:
        machine.faults.happened = False
        machine.faults.out_of_memory_at = machine.allocations + number
        self.tried += 1
        try:
            self._image(pipeline)
        except OutOfMemory as error:
            if not any(remedy in str(error) for remedy in REMEDIES):
                self.problems.append(f"allocation {number}: the error names no remedy: {error}")
        except Exception as error:
            self.problems.append(f"allocation {number}: {type(error).__name__}: {error}")
        else:
            self.survived += 1
        said = pipeline.take_warnings()
        if not machine.faults.happened:
            self.problems.append(f"allocation {number} was not reached")
        if any("memory ran out" not in warning for warning in said):
            self.problems.append(f"allocation {number}: {'; '.join(said)}")
