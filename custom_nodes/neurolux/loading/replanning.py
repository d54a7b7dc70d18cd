"""Updates the plan of a loaded pipeline: for another image size, for adapters, and after it ran out of memory."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ..families.parts.control_shapes import control_shape
from ..families.registry import family_of
from ..memory.machine import this_machine
from ..planning.adapters import with_adapters
from ..planning.planner import leaner, make_plan
from ..planning.records import ComponentPlan, ComponentShape, Machine, Plan, gigabytes
from ..weights.stamps import FileStamp, all_shapes
from .loaded import LoadedPipeline

_log = logging.getLogger(__name__)


def fit(loaded: LoadedPipeline, width: int, height: int, motion: ComponentShape | None = None, **sampled: Any) -> None:
    """Update the plan for an image of this size, without reloading: resident blocks, VAE tiles, the offload mode.

    ``motion``: the motion adapter that makes frames of it.
    ``sampled``: of a Workload, what sampling it will take (passes, frames, encodes); as before if it is left out.

    Does nothing after memory ran out: a plan from experience is better than an estimate.
    """
    loaded.motion = motion
    workload, shapes = replace(loaded.workload, width=width, height=height, **sampled), shapes_at_work(loaded)
    if loaded.leaner or (workload, shapes) == (loaded.workload, loaded.planned_shapes or loaded.shapes):
        return
    loaded.workload, loaded.planned_shapes = workload, shapes
    plan = plan_for(loaded, loaded.first_offload)
    if not plan.fits and loaded.spec.offload == "auto":
        other = plan_for(loaded, "auto")
        plan = other if other.fits else plan
    placement = loaded.placement
    if plan.offload == placement.mode:
        placement.resize(plan)
    elif all(same_types(plan.components[name], placement.planned(name)) for name in loaded.shapes):
        log_plan(loaded.model.name, plan)
        placement.follow(plan)


def shapes_at_work(loaded: LoadedPipeline) -> dict[str, ComponentShape]:
    """The shapes of its components with their LoRAs, and of the ControlNets and the motion adapter beside them."""
    files = dict.fromkeys(control.file for control in loaded.controls)
    controls = [shape_of_control(file, loaded.model.family) for file in files]
    return with_adapters(loaded.shapes, loaded.denoiser_name, controls, loaded.loras.bytes, loaded.motion)


@lru_cache(maxsize=64)
def shape_of_control(file: FileStamp, family: str) -> ComponentShape:
    """The shape of a ControlNet, from its file or its diffusers folder. Raises WeightsMissing for a damaged one."""
    return control_shape(all_shapes(file), family)


def plan_for(loaded: LoadedPipeline, offload: str) -> Plan:
    """A plan in mode ``offload`` for the current state of the pipeline."""
    precision = loaded.precision
    return make_plan(
        family_of(loaded.model.family).costs, shapes_at_work(loaded), machine_of(loaded), loaded.workload,
        loaded.placement.plan.precision, offload, force_upcast_vae=precision.vae != precision.main,
    )  # fmt: skip


def go_leaner(loaded: LoadedPipeline) -> str | None:
    """Switch to the next leaner plan. Returns what changed, as text, or None if there is no leaner plan.

    Call it when everything has left the device.
    """
    before = loaded.placement.plan
    plan = leaner(
        before, family_of(loaded.model.family).costs, shapes_at_work(loaded), machine_of(loaded), loaded.workload
    )
    if plan is None:
        return None
    loaded.placement.follow(plan)
    loaded.leaner = True
    tiles = f", the VAE in tiles of {plan.vae_tile} pixels" if plan.vae_tile else ""
    change = f"offload {plan.offload} instead of {before.offload}{tiles}, peak {gigabytes(plan.peak_vram)}"
    loaded.unreported_warnings.append(f"memory ran out, and the stage was run again with a leaner plan: {change}")
    return change


def machine_of(loaded: LoadedPipeline) -> Machine:
    """This machine. Memory that the pipeline itself holds counts as free."""
    machine = this_machine(loaded.device, droppable_ram=loaded.ram_bytes)
    return machine if loaded.disk_rate is None else replace(machine, disk_rate=loaded.disk_rate, disk_from="measured")


def same_types(planned: ComponentPlan, now: ComponentPlan) -> bool:
    """Whether ``planned`` has the types of ``now``, so the loaded weights can stay."""
    return (planned.storage, planned.compute) == (now.storage, now.compute)


def log_plan(name: str, plan: Plan) -> None:
    """Log the plan. A plan that does not fit is tried anyway, because its figures are estimates."""
    reasons = "; ".join(plan.reasons)
    level = logging.INFO if plan.fits else logging.WARNING
    fits = "" if plan.fits else " It may not fit."
    memory = f"{gigabytes(plan.peak_vram)} on the device, {gigabytes(plan.peak_ram)} of RAM"
    _log.log(
        level, "NeuroLux: %s: offload %s, %s, %s: %s.%s", name, plan.offload, plan.precision, memory, reasons, fits
    )
