"""A question about memory ("this model, on such a card?") and its answer. Stdlib only: no torch, no ComfyUI.

The route and ``imagegen plan`` ask with the same names and get the same answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..adapters.detect import AdapterKind, detect
from ..catalog.auxiliary import helper_catalog
from ..catalog.models import Model
from ..errors import InvalidParameter
from ..families.control_shapes import control_shape, published_control_shape
from ..families.registry import family_of
from ..planning.adapters import with_adapters
from ..planning.costs import CONTEXT_BYTES, SYSTEM_RAM_BYTES
from ..planning.planner import check_choice, make_plan
from ..planning.records import (
    OFFLOAD_CHOICES,
    PRECISION_CHOICES,
    ComponentShape,
    Machine,
    Plan,
    Workload,
    gigabytes,
)
from ..planning.report import as_json, table
from ..weights.stamps import all_shapes, stamp_file

Locate = Callable[[AdapterKind, str], Path | None]
"""Where the LoRA or the ControlNet of a name is, if it is here."""
UNITS = {"": 1, "b": 1}
UNITS |= {f"{prefix}{end}": 1000**power for power, prefix in enumerate("kmgt", 1) for end in ("", "b")}
UNITS |= {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class PlanQuery:
    """What is asked; None where the model's default or this machine decides."""

    vram: int | None = None
    """Bytes of a card's memory, all of it; 0 for a CPU."""
    ram: int | None = None
    """Bytes of RAM that a machine has."""
    bf16: bool | None = None
    """Whether the card computes in bf16: NVIDIA's do since the RTX 30."""
    width: int | None = None
    height: int | None = None
    count: int | None = None
    steps: int | None = None
    precision: str = "auto"
    offload: str = "auto"
    controlnet: tuple[str, ...] = ()
    """ControlNets that guide it: names of files, or how large they are (``2.5GB``)."""
    lora: tuple[str, ...] = ()
    """LoRAs in it, likewise."""


FIELDS = tuple(field.name for field in fields(PlanQuery))


def parse_query(values: Mapping[str, str]) -> PlanQuery:
    """The question in ``values``, as a URL or a command line writes it. Raises InvalidParameter."""
    unknown = [name for name in values if name not in FIELDS]
    if unknown:
        raise InvalidParameter(unknown[0], f"unknown parameter {unknown[0]!r}; use {', '.join(FIELDS)}")
    parsed: dict[str, Any] = {}
    for name, text in values.items():
        if name in ("vram", "ram"):
            parsed[name] = parse_bytes(name, text)
        elif name in ("width", "height", "count", "steps"):
            parsed[name] = parse_count(name, text)
        elif name == "bf16":
            if text.lower() not in TRUTHS:
                raise InvalidParameter(name, f"bf16 {text!r} is neither true nor false")
            parsed[name] = TRUTHS[text.lower()]
        elif name in ("controlnet", "lora"):
            parsed[name] = tuple(part.strip() for part in text.split(",") if part.strip())
        else:
            check_choice(name, text, PRECISION_CHOICES if name == "precision" else OFFLOAD_CHOICES)
            parsed[name] = text
    return PlanQuery(**parsed)


def parse_bytes(name: str, text: str) -> int:
    """``8GB`` (10^9), ``7.5GiB`` (2^30), ``8g``, ``500MB`` or plain bytes. Raises InvalidParameter."""
    match = SIZE.fullmatch(text)
    if match is None or match[2].lower() not in UNITS:
        raise InvalidParameter(name, f"{name} {text!r} is not a size; write 8GB, 7.5GB or 8GiB")
    return round(float(match[1]) * UNITS[match[2].lower()])


def parse_count(name: str, text: str) -> int:
    """A whole number above zero. Raises InvalidParameter."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise InvalidParameter(name, f"{name} {text!r} is not a whole number above 0")
    return int(text)


def asked_shapes(
    model: Model, shapes: Mapping[str, ComponentShape], query: PlanQuery, locate: Locate
) -> dict[str, ComponentShape]:
    """``shapes`` and what ``query`` adds to them. Raises InvalidParameter, or WeightsMissing for a damaged file."""
    controls = [asked_control(name, model, locate) for name in query.controlnet]
    loras = sum(asked_lora(name, locate) for name in query.lora)
    denoiser = family_of(model.family).denoiser
    return with_adapters(shapes, denoiser, controls, loras) if controls or loras else dict(shapes)


def asked_control(name: str, model: Model, locate: Locate) -> ComponentShape:
    """A ControlNet by its file, by the catalog, or by its size."""
    path, known = locate("controlnet", name), helper_catalog().controlnets.get(name)
    if path is None and known is None and SIZE.fullmatch(name) is None:
        names = ", ".join(name for name, own in helper_catalog().controlnets.items() if own.family == model.family)
        raise InvalidParameter(
            "controlnet",
            f"there is no ControlNet {name!r} in models/controlnet; the catalog has {names or 'none'} for "
            f"{model.family}. Or give its size: 2.5GB",
        )
    if path is None and known is not None and known.family != model.family:
        raise InvalidParameter(
            "controlnet", f"ControlNet {name} was made for {known.family}, {model.name} is a {model.family} model"
        )
    if path is None:
        size = known.download_bytes if known is not None else parse_bytes("controlnet", name)
        return published_control_shape(size, model.family)
    file = stamp_file(name, path)
    family = detect("controlnet", file).family
    if family != model.family:
        raise InvalidParameter("controlnet", f"ControlNet {name} was made for {family}, {model.name} is {model.family}")
    return control_shape(all_shapes(file), model.family)


def asked_lora(name: str, locate: Locate) -> int:
    """Bytes of a LoRA by its file, or as they are given."""
    path = locate("lora", name)
    if path is not None:
        return path.stat().st_size
    if SIZE.fullmatch(name) is None:
        raise InvalidParameter("lora", f"there is no LoRA {name!r} in models/loras; or give its size: 300MB")
    return parse_bytes("lora", name)


def workload_for(model: Model, query: PlanQuery) -> Workload:
    """What is to be drawn: the model's defaults for what is not asked. Raises InvalidParameter beyond its limits."""
    defaults, limits = model.defaults, model.limits
    width = query.width or query.height or defaults.width
    workload = Workload(width, query.height or width, query.count or 1, query.steps or defaults.num_inference_steps)
    limits.width.check("width", workload.width)
    limits.height.check("height", workload.height)
    limits.num_images.check(workload.count)
    limits.num_inference_steps.check(workload.steps)
    return workload


def machine_for(query: PlanQuery, here: Machine) -> Machine:
    """The machine that is asked about: ``here`` but for what the question says.

    Of a card, a CUDA context takes its part first; of RAM, the system and the desktop.
    """
    machine = here
    if query.vram == 0:
        machine = Machine("cpu", 0, here.free_ram, bf16=True, fp16=True)
    elif query.vram is not None:
        machine = Machine("cuda", max(0, query.vram - CONTEXT_BYTES), here.free_ram, bf16=True, fp16=True)
    if query.ram is not None:
        machine = replace(machine, free_ram=max(0, query.ram - min(SYSTEM_RAM_BYTES, query.ram // 4)))
    return machine if query.bf16 is None else replace(machine, bf16=query.bf16)


def plan_for(
    model: Model,
    shapes: Mapping[str, ComponentShape],
    query: PlanQuery,
    here: Machine,
    *,
    force_upcast_vae: bool | None = None,
) -> tuple[Machine, Workload, Plan]:
    """The plan for the machine and the image that ``query`` asks about. Raises InvalidParameter."""
    if not shapes:
        raise InvalidParameter(
            "model", f"how large the parts of model {model.name!r} are is not known before its files are here"
        )
    machine, workload = machine_for(query, here), workload_for(model, query)
    upcast = model.force_upcast_vae if force_upcast_vae is None else force_upcast_vae
    plan = make_plan(
        family_of(model.family).costs, shapes, machine, workload, query.precision, query.offload,
        force_upcast_vae=upcast,
    )  # fmt: skip
    return machine, workload, plan


def describe(model: Model, machine: Machine, workload: Workload, plan: Plan) -> dict[str, Any]:
    """The answer for the wire, and as the text that ``imagegen plan`` prints."""
    return {
        "model": model.name,
        "machine": asdict(machine),
        "picture": asdict(workload),
        "plan": as_json(plan),
        "table": text(model, machine, workload, plan),
    }


def text(model: Model, machine: Machine, workload: Workload, plan: Plan) -> str:
    """The answer for people."""
    count = f"{workload.count} images of " if workload.count > 1 else ""
    card = f"a card with {gigabytes(machine.free_vram)} free" if machine.own_memory else f"a {machine.device.upper()}"
    head = f"{model.title}: {count}{workload.width}x{workload.height}, {workload.steps} steps"
    return f"{head}\non {card}, {gigabytes(machine.free_ram)} of RAM free\n\n{table(plan)}"
