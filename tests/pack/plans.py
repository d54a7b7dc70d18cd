"""Plans of the catalog's models on machines of any size: what a test of the memory plan begins with."""

from __future__ import annotations

from typing import Any

from neurolux.catalog.models import Model
from neurolux.catalog.reading import read_catalog
from neurolux.families.registry import family_of
from neurolux.planning.costs import CONTEXT_BYTES
from neurolux.planning.planner import make_plan
from neurolux.planning.records import (
    ComponentPlan,
    FamilyCosts,
    Machine,
    Plan,
    Workload,
)

GB = 10**9
MODELS = read_catalog().models


def card(vram: float, ram: float = 64, **traits: Any) -> Machine:
    """A machine with a card of ``vram`` GB, as its free memory would be measured, and ``ram`` GB of free RAM."""
    traits = {"bf16": True, "fp16": True, **traits}
    return Machine("cuda", int(vram * GB) - CONTEXT_BYTES, int(ram * GB), **traits)


def cpu(ram: float) -> Machine:
    """A machine without a card."""
    return Machine("cpu", 0, int(ram * GB), bf16=True, fp16=True)


def plan(
    name: str,
    machine: Machine,
    precision: str = "auto",
    offload: str = "auto",
    side: int | None = None,
    count: int = 1,
    **more: Any,
) -> Plan:
    """The plan of a catalog model."""
    model = MODELS[name]
    more = {"force_upcast_vae": model.force_upcast_vae, **more}
    return make_plan(
        costs(model.family), model.components, machine, workload(model, side, count), precision, offload, **more
    )  # fmt: skip


def workload(model: Model, side: int | None = None, count: int = 1) -> Workload:
    """A square of the model's own size unless told."""
    side = side or model.defaults.width
    return Workload(side, side, count, model.defaults.num_inference_steps)


def costs(family: str) -> FamilyCosts:
    """What a plan must know of a family."""
    return family_of(family).costs


def denoiser(plan: Plan) -> ComponentPlan:
    """The transformer's or the UNet's."""
    return plan.components.get("transformer") or plan.components["unet"]
