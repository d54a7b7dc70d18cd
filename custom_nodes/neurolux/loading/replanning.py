"""Plans a loaded pipeline anew: for another image, for what is applied to it, and after memory ran out."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache

from ..families.control_shapes import control_shape
from ..families.registry import family_of
from ..memory.machine import this_machine
from ..planning.adapters import with_adapters
from ..planning.planner import leaner, make_plan
from ..planning.records import ComponentPlan, ComponentShape, Machine, Plan, gigabytes
from ..weights.stamps import FileStamp, all_shapes
from .loaded import LoadedPipeline

_log = logging.getLogger(__name__)


def fit(loaded: LoadedPipeline, width: int, height: int) -> None:
    """Plan anew for such an image what can change without loading again: resident blocks, tiles of the VAE.

    Not after memory ran out: what was learned then is better than an estimate.
    """
    workload, shapes = replace(loaded.workload, width=width, height=height), shapes_at_work(loaded)
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
    """Its components with the LoRAs in them, and beside them the ControlNets of the handle that borrows it."""
    files = dict.fromkeys(control.file for control in loaded.controls)
    controls = [shape_of_control(file, loaded.model.family) for file in files]
    return with_adapters(loaded.shapes, loaded.denoiser_name, controls, loaded.loras.bytes)


@lru_cache(maxsize=64)
def shape_of_control(file: FileStamp, family: str) -> ComponentShape:
    """A ControlNet by its file or its diffusers folder. Raises WeightsMissing for a damaged one."""
    return control_shape(all_shapes(file), family)


def plan_for(loaded: LoadedPipeline, offload: str) -> Plan:
    """The plan of ``offload`` for the pipeline as it is now."""
    precision = loaded.precision
    return make_plan(
        family_of(loaded.model.family).costs, shapes_at_work(loaded), machine_of(loaded), loaded.workload,
        loaded.placement.plan.precision, offload, force_upcast_vae=precision.vae != precision.main,
    )  # fmt: skip


def go_leaner(loaded: LoadedPipeline) -> str | None:
    """Place by the next leaner plan from now on; what was done, for a reader, or None where there is no such plan.

    Everything has left the device.
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
    """The machine, counting what the pipeline itself holds as free."""
    return this_machine(loaded.device, droppable_ram=loaded.ram_bytes)


def same_types(planned: ComponentPlan, now: ComponentPlan) -> bool:
    """Whether weights that are loaded by ``now`` are as ``planned`` wants them."""
    return (planned.storage, planned.compute) == (now.storage, now.compute)


def log_plan(name: str, plan: Plan) -> None:
    """Say what was planned; a plan that does not fit is tried all the same, because its figures are estimates."""
    reasons = "; ".join(plan.reasons)
    level = logging.INFO if plan.fits else logging.WARNING
    fits = "" if plan.fits else " It may not fit."
    memory = f"{gigabytes(plan.peak_vram)} on the device, {gigabytes(plan.peak_ram)} of RAM"
    _log.log(
        level, "NeuroLux: %s: offload %s, %s, %s: %s.%s", name, plan.offload, plan.precision, memory, reasons, fits
    )
