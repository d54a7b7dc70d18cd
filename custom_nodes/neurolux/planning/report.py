"""Renders a plan: reasons and a table for people, JSON for programs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from . import costs
from .layout import Pipeline, residents_of
from .records import ComponentPlan, Machine, Plan, gigabytes

LOSSES = {"int8": "the image changes a little", "nf4": "the image changes visibly in its details"}
COLUMNS = ("component", "type", "computed in", "where", "size")


def reasons(
    plan: Plan, pipe: Pipeline, choices: Mapping[str, str], better: Plan | None, faster: Plan | None
) -> Iterator[str]:
    """The reasons for the plan, one sentence each.

    ``better`` is a plan with less loss of image quality; ``faster`` is one with more loss and less transfer time.
    """
    machine = pipe.machine
    for choice, value in choices.items():
        if value != "auto":
            yield f"{choice} {value}: as chosen"
    if better is not None:
        yield f"precision {plan.precision}: {drawback(better, pipe)}"
    elif plan.precision == "as-is" and choices["precision"] == "auto":
        part = plan.components[pipe.denoiser]
        widened = f", widened to {part.compute} layer by layer" if part.storage != part.compute else ""
        yield f"precision as-is: the files' own {part.storage}{widened}; nothing is lost"
    elif choices["precision"] == "auto":
        yield f"precision {plan.precision}: {device_word(machine)} computes it well, and nothing is lost"
    for name in pipe.shapes:
        if plan.components[name].storage == "gguf":
            yield f"{name} is a GGUF file: its weights stay quantised and are widened when they are used"
    yield from mode_reasons(plan, pipe)
    if plan.vae_tile is not None:
        whole = costs.decode_bytes(pipe.family, pipe.workload.width, pipe.workload.height, pipe.formats["vae"][1])
        yield (
            f"decoding in tiles of {plan.vae_tile} pixels: a whole decode would take {gigabytes(whole)} "
            "in addition to the weights"
        )
    if not plan.copies_in_ram and plan.offload != "disk":
        yield "RAM is too small for a copy of all weights: they stay in their files"
    if faster is not None and seconds(whole_seconds(faster)) != seconds(whole_seconds(plan)):
        yield (
            f"choose precision {faster.precision} for speed: with offload {faster.offload}, a request would take about "
            f"{seconds(whole_seconds(faster))} instead of {seconds(whole_seconds(plan))}; {LOSSES[faster.precision]}"
        )
    yield from shortages(plan, pipe.machine)


def mode_reasons(plan: Plan, pipe: Pipeline) -> Iterator[str]:
    """What the offload mode does in this plan, with numbers."""
    machine, mode = pipe.machine, plan.offload
    memory = "VRAM" if machine.own_memory else "RAM"
    denoiser = plan.components[pipe.denoiser]
    if not machine.own_memory and mode in ("model", "stream", "sequential"):
        yield f"offload {mode}: {device_word(machine)} computes in RAM, so moving weights frees nothing"
    elif mode == "none":
        if plan.fits:
            yield f"offload none: all weights, {gigabytes(pipe.total)}, and the working memory fit into {memory}"
    elif mode == "model":
        largest = max(sum(pipe.bytes[name] for name in names) for names in pipe.stages.values())
        yield f"offload model: the weights of one stage at a time, {gigabytes(largest)} at most"
    elif mode == "sequential":
        yield f"offload sequential: {gigabytes(denoiser.bytes)} are copied layer by layer in each step"
    else:
        residents = residents_of(pipe.blocks[pipe.denoiser], denoiser.resident_blocks)
        source = "read from disk" if mode == "disk" else "streamed from RAM"
        if mode == "disk" and pipe.total > machine.free_ram:
            yield f"{gigabytes(machine.free_ram)} of RAM cannot hold the {gigabytes(pipe.total)} of weights"
        if residents.streamed:
            yield (
                f"offload {mode}: {residents.count} of {denoiser.blocks} blocks of the {pipe.denoiser} stay on the "
                f"device, {gigabytes(residents.streamed)} are {source} in each step while it computes"
            )
        else:
            yield f"offload {mode}: the {pipe.denoiser} stays on the device, other components are loaded when needed"
    if plan.reads_files:
        known = {"assumed": "assumed: no file to measure", "given": "as given", "measured": "measured on their disk"}
        yield f"weights are read at {machine.disk_rate / 1e9:.2g} GB/s ({known[machine.disk_from]})"
    if machine.own_memory:
        yield rate_reason(pipe)


def rate_reason(pipe: Pipeline) -> str:
    """What the estimate of computing is made from."""
    machine, rate = pipe.machine, f"{pipe.compute_rate / 1e12:.3g} TFLOP/s"
    compute = pipe.formats[pipe.denoiser][1]
    if machine.rates_from == "measured":
        return f"the time of computing follows from {rate} in {compute}, measured on this machine"
    if machine.rates_from == "card":
        bus = f"{machine.transfer_rate / 1e9:.3g} GB/s"
        return f"{machine.card}: computing is estimated at {rate} in {compute}, half of its peak, and its bus at {bus}"
    return f"no card is named: computing is estimated at {rate} in {compute}; a slower one hides more of the transfers"


def whole_seconds(plan: Plan) -> float:
    """About what a request takes: computing, and the transfers that it does not hide."""
    return plan.compute_seconds + plan.transfer_seconds


def device_word(machine: Machine) -> str:
    """What to call the device in a sentence."""
    return "the card" if machine.own_memory else machine.device.upper()


def drawback(better: Plan, pipe: Pipeline) -> str:
    """Why the plan with less loss of image quality was not chosen."""
    if not better.fits:
        return f"{better.precision} does not fit ({'; '.join(shortages(better, pipe.machine, bare=True))})"
    return (
        f"with {better.precision} and offload {better.offload}, transfers would add {seconds(better.transfer_seconds)} "
        f"to about {seconds(better.compute_seconds)} of computing"
    )


def shortages(plan: Plan, machine: Machine, *, bare: bool = False) -> Iterator[str]:
    """Which memory is too small for ``plan``, and what to do about it. ``bare``: only the numbers."""
    if plan.fits:
        return
    found = []
    if machine.own_memory and plan.peak_vram > machine.free_vram:
        found.append(f"it needs {gigabytes(plan.peak_vram)} of VRAM and {gigabytes(machine.free_vram)} are free")
    if plan.peak_ram > machine.free_ram:
        found.append(f"it needs {gigabytes(plan.peak_ram)} of RAM and {gigabytes(machine.free_ram)} are free")
    if bare:
        yield from found
        return
    for shortage in found:
        yield f"does not fit: {shortage}"
    yield "choose offload auto and precision auto, a smaller image, or close what else uses memory"


def seconds(value: float) -> str:
    """``value`` seconds as text, in seconds or minutes."""
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.0f} min"


def table(plan: Plan) -> str:
    """The plan as text: a line per component, then the totals and the reasons."""
    rows = [COLUMNS] + [
        (name, part.storage, part.compute, placement_text(part), gigabytes(part.bytes))
        for name, part in plan.components.items()
    ]
    lines = [*aligned_columns(rows, right=(4,)), ""]
    lines += aligned_columns([(label, value) for label, value in totals(plan)])
    return "\n".join([*lines, "", *(f"- {reason}" for reason in plan.reasons)])


def totals(plan: Plan) -> Iterator[tuple[str, str]]:
    """The totals of the plan, as labels and values."""
    yield "fits", "yes" if plan.fits else "no"
    yield "precision", plan.precision
    yield "offload", plan.offload
    yield "decode", "whole" if plan.vae_tile is None else f"in tiles of {plan.vae_tile} pixels"
    if plan.peak_vram:
        yield "peak VRAM", gigabytes(plan.peak_vram)
    pinned = f", {gigabytes(plan.pinned_ram)} of it pinned" if plan.pinned_ram else ""
    yield "peak RAM", gigabytes(plan.peak_ram) + pinned
    yield "transfers", f"{seconds(plan.transfer_seconds)} that computing does not hide, with a new prompt"
    yield "computing", f"about {seconds(plan.compute_seconds)}"


def placement_text(part: ComponentPlan) -> str:
    """Where the weights of a component are, as text."""
    if part.placement in ("stream", "disk"):
        source = "streamed" if part.placement == "stream" else "from disk"
        return f"{source}, {part.resident_blocks} of {part.blocks} blocks stay"
    return {"resident": "stays", "stage": "loaded for its stage", "sequential": "layer by layer"}[part.placement]


def aligned_columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """``rows`` as lines with aligned columns. ``right`` lists the indices of right-aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values. Field names are those of the records."""
    document = asdict(plan)
    document["reasons"] = list(plan.reasons)
    return document
