"""Chooses where the weights go and in which type, and estimates the cost. Pure, so a plan can be printed and tested.

A request has three stages: encode, sample, decode. The offload mode of a plan says what is on the device in each:

- ``none``: every component, always.
- ``model``: the components of the stage.
- ``stream``: as many blocks of the denoiser as fit are resident. The others are copied from RAM ahead of use, two at a
  time, and dropped afterwards. T5 is split in the same way. Components that cannot be split are loaded for their stage.
- ``sequential``: one layer at a time.
- ``disk``: like ``stream``, but the streamed blocks are read from their files, because RAM cannot hold them.

A plan's transfer time is what transfers add to a request with a new prompt. Streaming overlaps with computing and only
costs what it takes longer. The compute time is estimated from the denoiser's operations and a cautious rate for the
device (costs.py).
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
"""Transfer time that a request may lose before weights are stored in fewer bits: in seconds, or as a share of the
compute time, whichever is more."""
EXTRA_SECONDS = {"sequential": 0.5}
"""What a mode must gain to be preferred: copies of single layers cost the host time that no plan counts."""
MODES: tuple[OffloadMode, ...] = ("none", "model", "stream", "sequential", "disk")
LEANER_SHARE = 0.7
"""Share of a plan's peak that the next leaner plan may take."""


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
    """The fastest plan that fits without loss of quality. It stores fewer bits only if memory or transfers require it.

    An explicit ``precision`` or ``offload`` is kept, and only the rest is planned. If that cannot fit, the plan says so
    in ``fits`` and ``reasons``. Raises InvalidParameter for an unknown choice, and for fp16 where the denoiser
    overflows in it.
    """
    check_choice("precision", precision, PRECISION_CHOICES)
    check_choice("offload", offload, OFFLOAD_CHOICES)
    if precision == "fp16" and family.denoiser in family.overflows_fp16:
        raise InvalidParameter("precision", "this model overflows in fp16, so its images would be black; use bf16")
    planner = Planner(family, shapes, machine, workload, precision, offload, force_upcast_vae)
    return planner.with_reasons(planner.choose())


def leaner(
    plan: Plan, family: FamilyCosts, shapes: Mapping[str, ComponentShape], machine: Machine, workload: Workload
) -> Plan | None:
    """The next leaner plan after ``plan`` ran out of memory, or None if there is no leaner one.

    It keeps the types of the weights, so they need not be loaded again. It takes at most 70 % of the memory if such a
    plan exists: it decodes in tiles, keeps fewer blocks resident and, as a last resort, loads layer by layer.
    """
    pipe = Pipeline(family, shapes, formats_of(family, plan, shapes), machine, workload)
    before = peak_memory(plan, machine)
    modes: Sequence[OffloadMode] = ("model", "stream", "sequential") if machine.own_memory else ("disk",)
    if plan.offload == "disk":
        modes = ("disk",)
    tile = TILE if max(workload.width, workload.height) > TILE else None
    candidates = [
        lay_out(pipe, mode, plan.precision, tile, int(before * share)) for mode in modes for share in (LEANER_SHARE, 0)
    ]
    candidates = [candidate for candidate in candidates if peak_memory(candidate, machine) < before]
    if not candidates:
        return None
    enough = [candidate for candidate in candidates if peak_memory(candidate, machine) <= before * LEANER_SHARE]
    if enough:
        found = min(enough, key=lambda candidate: candidate.transfer_seconds)
    else:
        found = min(candidates, key=lambda candidate: peak_memory(candidate, machine))
    fits = peak_memory(found, machine) <= (machine.free_vram if machine.own_memory else machine.free_ram)
    fits = fits and found.peak_ram <= machine.free_ram
    reason = f"{plan.offload} ran out of memory with {gigabytes(before)} planned"
    return replace(found, fits=fits, reasons=(f"{reason}; this takes {gigabytes(peak_memory(found, machine))}",))


def formats_of(family: FamilyCosts, plan: Plan, shapes: Mapping[str, ComponentShape]) -> Formats:
    """The types of ``plan``. A ControlNet that was added after planning gets the denoiser's compute type."""
    known: dict[str, tuple[StorageType, ComputeType]] = {
        name: (part.storage, part.compute) for name, part in plan.components.items()
    }
    main: ComputeType = known[family.denoiser][1]
    return {name: known.get(name, (main, main)) for name in shapes}


def peak_memory(plan: Plan, machine: Machine) -> int:
    """Peak bytes of the memory that can run out: the device's own, else RAM."""
    return plan.peak_vram if machine.own_memory else plan.peak_ram


def shortage(plan: Plan, machine: Machine) -> int:
    """Bytes that ``plan`` is short of, on the device and in RAM together."""
    card = max(0, plan.peak_vram - machine.free_vram) if machine.own_memory else 0
    return card + max(0, plan.peak_ram - machine.free_ram)


def check_choice(field: str, value: str, choices: Sequence[str]) -> None:
    """Raise InvalidParameter unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise InvalidParameter(field, f"unknown {field} {value!r}; use {', '.join(choices)}")


@dataclass(frozen=True)
class Planner:
    """Compares the possible layouts of one request and chooses the best."""

    family: FamilyCosts
    shapes: Mapping[str, ComponentShape]
    machine: Machine
    workload: Workload
    precision: str
    offload: str
    force_upcast_vae: bool

    def choose(self) -> Plan:
        """The first acceptable plan, in order of increasing loss of image quality."""
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
        """The fastest plan that fits, from the first precision that has one. A whole decode comes before a tiled one.

        ``tolerable``: only plans that lose an acceptable time to transfers. None if no plan fits.
        """
        for precision in precisions:
            for tile in self.tiles():
                pipe = self.pipeline(precision)
                fitting = [plan for plan in self.layouts(pipe, self.precision_name(precision, pipe), tile) if plan.fits]
                if self.precision == "auto" and pipe.all_converted > self.machine.free_ram:
                    # A converted copy of weights that RAM does not hold is written to the disk only for who asks for
                    # the type: the files' own types can stay in the files.
                    fitting = [plan for plan in fitting if plan.copies_in_ram or not pipe.all_converted]
                if tolerable:
                    fitting = [plan for plan in fitting if plan.transfer_seconds <= self.tolerable(pipe)]
                if fitting:
                    return min(fitting, key=lambda plan: plan.transfer_seconds + EXTRA_SECONDS.get(plan.offload, 0))
        return None

    def leanest(self, precision: str) -> Plan:
        """The plan with the smallest shortage, for when nothing fits: the user sees how much memory is missing."""
        pipe = self.pipeline(precision)
        plans = self.layouts(pipe, self.precision_name(precision, pipe), self.tiles()[-1])
        return min(plans, key=lambda plan: (shortage(plan, self.machine), plan.transfer_seconds))

    def precision_name(self, precision: str, pipe: Pipeline) -> str:
        """The name that the plan reports for ``precision``: as-is becomes bf16 if the files are bf16 and so is the
        compute type."""
        storage, compute = pipe.formats[pipe.denoiser]
        return storage if precision == "as-is" and storage == compute and self.precision == "auto" else precision

    def tiles(self) -> tuple[int | None, ...]:
        """The tile sizes to try: whole first, then tiles if the image is larger than one."""
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
        """One layout for each mode that may be used."""
        return [lay_out(pipe, mode, precision, tile) for mode in self.modes(precision)]

    def modes(self, precision: str) -> Sequence[OffloadMode]:
        """The user's mode, or those that help on the device. On a CPU, bf16 in RAM is preferred to fp32 from disk."""
        if self.offload != "auto":
            return [self.offload]  # pyright: ignore[reportReturnType]
        if self.machine.own_memory:
            return MODES
        return ("none",) if precision == "fp32" and self.precision == "auto" else ("none", "disk")

    def with_reasons(self, plan: Plan) -> Plan:
        """``plan`` with its reasons."""
        formats: Formats = {name: (part.storage, part.compute) for name, part in plan.components.items()}
        pipe = Pipeline(self.family, self.shapes, formats, self.machine, self.workload)
        better = faster = None
        if self.precision == "auto":
            lossless = automatic_precisions(self.family, self.machine)
            if plan.precision not in (lossless[0], "as-is"):
                precision = lossless[0] if plan.precision in lossless else lossless[-1]
                better = self.best([precision]) or self.leanest(precision)
            if plan.transfer_seconds > self.tolerable(pipe) or not plan.fits:
                faster = self.best(["int8", "nf4"], tolerable=True)
        choices = {"precision": self.precision, "offload": self.offload}
        return replace(plan, reasons=tuple(reasons(plan, pipe, choices, better, faster)))

    def tolerable(self, pipe: Pipeline) -> float:
        """Seconds that a request may lose to transfers before its weights are stored in fewer bits."""
        return max(TOLERABLE_SECONDS, TOLERABLE_SHARE * pipe.step_seconds * pipe.steps)
