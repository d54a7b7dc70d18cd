"""Where the weights go, in which type, and what that costs: a pure plan, so that it can be printed and tested.

A request has three stages (encode, sample, decode). A plan says what is on the device in each of them:

- ``none``: every component, always.
- ``model``: the components of the stage.
- ``stream``: as many blocks of the denoiser as fit stay; the others come from RAM ahead of use, two at a time, and are
  dropped after it. T5 is split in the same way. What is not split comes for its stage.
- ``sequential``: one layer at a time.
- ``disk``: as ``stream``, the streamed blocks read from their files: for a RAM that is too small to hold them.

Time is what transfers add to a request with a new prompt. Computing hides the streaming of a step as far as it takes
as long; how long that is comes from the denoiser's operations and a cautious figure for the device (costs.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import InvalidParameter
from .costs import TILE
from .formats import Formats, automatic_precisions, choose_formats
from .layout import Pipeline, lay_out
from .records import (
    OFFLOAD_CHOICES,
    PRECISION_CHOICES,
    ComponentShape,
    ComputeType,
    FamilyCosts,
    Machine,
    OffloadMode,
    Plan,
    StorageType,
    Workload,
    gigabytes,
)
from .report import reasons

TOLERABLE_SECONDS = 1.0
TOLERABLE_SHARE = 0.5
"""Time lost to transfers that is paid before weights are kept in fewer bits: in all, or as a share of computing."""
MODES: tuple[OffloadMode, ...] = ("none", "model", "stream", "sequential", "disk")
LEANER_ROOM = 0.7
"""Share of the peak that the next leaner plan may take."""


def make_plan(
    family: FamilyCosts,
    shapes: Mapping[str, ComponentShape],
    machine: Machine,
    workload: Workload,
    precision: str = "auto",
    offload: str = "auto",
    *,
    force_upcast_vae: bool = False,
) -> Plan:
    """The fastest plan that fits and loses no quality; fewer bits only where RAM or transfers demand them.

    An explicit ``precision`` or ``offload`` is kept and only the rest is planned; where it cannot fit, the plan says so
    (``fits``, ``reasons``). Raises InvalidParameter for a choice that is none.
    """
    check_choice("precision", precision, PRECISION_CHOICES)
    check_choice("offload", offload, OFFLOAD_CHOICES)
    planner = Planner(family, shapes, machine, workload, precision, offload, force_upcast_vae)
    return planner.explained(planner.chosen())


def leaner(
    plan: Plan, family: FamilyCosts, shapes: Mapping[str, ComponentShape], machine: Machine, workload: Workload
) -> Plan | None:
    """The next leaner plan after ``plan`` ran out of memory; None where there is none.

    It keeps the types of the weights (they need not be loaded again) and takes at most 70 % of the memory while there
    is such a plan: a tiled decode, fewer resident blocks, in the end layer after layer.
    """
    pipe = Pipeline(family, shapes, formats_of(family, plan, shapes), machine, workload)
    before = taken(plan, machine)
    modes: Sequence[OffloadMode] = ("model", "stream", "sequential") if machine.own_memory else ("disk",)
    if plan.offload == "disk":
        modes = ("disk",)
    tile = TILE if max(workload.width, workload.height) > TILE else None
    candidates = [
        lay_out(pipe, mode, plan.precision, tile, int(before * share)) for mode in modes for share in (LEANER_ROOM, 0)
    ]
    candidates = [candidate for candidate in candidates if taken(candidate, machine) < before]
    if not candidates:
        return None
    enough = [candidate for candidate in candidates if taken(candidate, machine) <= before * LEANER_ROOM]
    if enough:
        found = min(enough, key=lambda candidate: candidate.transfer_seconds)
    else:
        found = min(candidates, key=lambda candidate: taken(candidate, machine))
    fits = taken(found, machine) <= (machine.free_vram if machine.own_memory else machine.free_ram)
    fits = fits and found.peak_ram <= machine.free_ram
    reason = f"{plan.offload} ran out of memory with {gigabytes(before)} planned"
    return replace(found, fits=fits, reasons=(f"{reason}; this takes {gigabytes(taken(found, machine))}",))


def formats_of(family: FamilyCosts, plan: Plan, shapes: Mapping[str, ComponentShape]) -> Formats:
    """The types of ``plan``; a ControlNet that came after it has the one that the denoiser computes in."""
    known: dict[str, tuple[StorageType, ComputeType]] = {
        name: (part.storage, part.compute) for name, part in plan.components.items()
    }
    main: ComputeType = known[family.denoiser][1]
    return {name: known.get(name, (main, main)) for name in shapes}


def taken(plan: Plan, machine: Machine) -> int:
    """The memory that an out-of-memory is about: the device's own, else RAM."""
    return plan.peak_vram if machine.own_memory else plan.peak_ram


def shortage(plan: Plan, machine: Machine) -> int:
    """Bytes that ``plan`` lacks, of the device and of RAM together."""
    card = max(0, plan.peak_vram - machine.free_vram) if machine.own_memory else 0
    return card + max(0, plan.peak_ram - machine.free_ram)


def check_choice(field: str, value: str, choices: Sequence[str]) -> None:
    """Raise InvalidParameter unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise InvalidParameter(field, f"unknown {field} {value!r}; use {', '.join(choices)}")


@dataclass(frozen=True)
class Planner:
    """Goes through the ways to lay one request out and takes the best."""

    family: FamilyCosts
    shapes: Mapping[str, ComponentShape]
    machine: Machine
    workload: Workload
    precision: str
    offload: str
    force_upcast_vae: bool

    def chosen(self) -> Plan:
        """The first that is good enough, in the order of what it costs the image."""
        if self.precision != "auto":
            return self.best([self.precision]) or self.leanest(self.precision)
        lossless = automatic_precisions(self.family, self.machine)
        fewer_bits = ["fp8"] if self.machine.fp8 else []
        return (
            self.best([*lossless, *fewer_bits], tolerable=True)
            or self.best([*fewer_bits, *reversed(lossless), "int8", "nf4"])
            or self.leanest(lossless[-1])
        )

    def best(self, precisions: Sequence[str], *, tolerable: bool = False) -> Plan | None:
        """The fastest that fits, of the first precision (whole decode before tiled) that has one."""
        for precision in precisions:
            for tile in self.tiles():
                pipe = self.pipeline(precision)
                fitting = [plan for plan in self.layouts(pipe, self.called(precision, pipe), tile) if plan.fits]
                if tolerable:
                    fitting = [plan for plan in fitting if plan.transfer_seconds <= self.tolerable(pipe)]
                if fitting:
                    return min(fitting, key=lambda plan: plan.transfer_seconds)
        return None

    def leanest(self, precision: str) -> Plan:
        """Where nothing fits: what lacks the least, so that the reader sees how much is missing."""
        pipe = self.pipeline(precision)
        plans = self.layouts(pipe, self.called(precision, pipe), self.tiles()[-1])
        return min(plans, key=lambda plan: (shortage(plan, self.machine), taken(plan, self.machine)))

    def called(self, precision: str, pipe: Pipeline) -> str:
        """The name of ``precision`` here: as-is is bf16 where the files are so and nothing has to be widened."""
        storage, compute = pipe.formats[pipe.denoiser]
        return storage if precision == "as-is" and storage == compute and self.precision == "auto" else precision

    def tiles(self) -> tuple[int | None, ...]:
        """Whole first; tiles only where there would be more than one."""
        return (None, TILE) if max(self.workload.width, self.workload.height) > TILE else (None,)

    def pipeline(self, precision: str) -> Pipeline:
        """The pipeline in ``precision``."""
        formats = choose_formats(
            self.family,
            self.shapes,
            self.machine,
            precision,
            chosen=self.precision != "auto",
            force_upcast_vae=self.force_upcast_vae,
        )
        return Pipeline(self.family, self.shapes, formats, self.machine, self.workload)

    def layouts(self, pipe: Pipeline, precision: str, tile: int | None) -> list[Plan]:
        """The layouts of the modes that may be used."""
        return [lay_out(pipe, mode, precision, tile) for mode in self.modes(precision)]

    def modes(self, precision: str) -> Sequence[OffloadMode]:
        """The user's mode, or those that help on the device. No CPU reads fp32 from disk that could hold bf16."""
        if self.offload != "auto":
            return [self.offload]  # pyright: ignore[reportReturnType]
        if self.machine.own_memory:
            return MODES
        return ("none",) if precision == "fp32" and self.precision == "auto" else ("none", "disk")

    def explained(self, plan: Plan) -> Plan:
        """``plan`` with its reasons."""
        formats: Formats = {name: (part.storage, part.compute) for name, part in plan.components.items()}
        pipe = Pipeline(self.family, self.shapes, formats, self.machine, self.workload)
        better = faster = None
        if self.precision == "auto":
            lossless = automatic_precisions(self.family, self.machine)
            if plan.precision not in (lossless[0], "as-is"):
                wanted = lossless[0] if plan.precision in lossless else lossless[-1]
                better = self.best([wanted]) or self.leanest(wanted)
            if plan.transfer_seconds > self.tolerable(pipe) or not plan.fits:
                faster = self.best(["int8", "nf4"], tolerable=True)
        choices = {"precision": self.precision, "offload": self.offload}
        return replace(plan, reasons=tuple(reasons(plan, pipe, choices, better, faster)))

    def tolerable(self, pipe: Pipeline) -> float:
        """Seconds of transfers that a request may lose before its weights are kept in fewer bits."""
        return max(TOLERABLE_SECONDS, TOLERABLE_SHARE * pipe.step_seconds * pipe.steps)
