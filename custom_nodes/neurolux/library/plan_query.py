"""Parses a plan query (a model, a card, an image) and computes the answer. Imports neither torch nor ComfyUI.

The route and ``imagegen plan`` use the same parameter names and return the same answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..adapters.detect import AdapterKind, detect
from ..catalog.auxiliary import auxiliary_catalog
from ..catalog.models import Model
from ..errors import InvalidParameter
from ..families.parts.control_shapes import PUBLISHED_BYTES, control_shape, published_control_shape
from ..families.registry import family_of
from ..planning.adapters import with_adapters
from ..planning.cards import find_card, known_cards
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
from ..weights.disk_speed import rate_of_files
from ..weights.download.sources import local_files
from ..weights.stamps import all_shapes, stamp_file

Locate = Callable[[AdapterKind, str], Path | None]
"""(kind, name) -> the path of a LoRA or a ControlNet; None if it is not on this machine."""
UNITS = {"": 1, "b": 1}
UNITS |= {f"{prefix}{end}": 1000**power for power, prefix in enumerate("kmgt", 1) for end in ("", "b")}
UNITS |= {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class PlanQuery:
    """The parameters of a query. None stands for the model's default, or for the value of this machine."""

    vram: int | None = None
    """Total bytes of the card's memory; 0 for a CPU."""
    card: str | None = None
    """The name of a card (``planning/cards.toml``), which says its memory, number formats and rates."""
    ram: int | None = None
    """Total bytes of RAM."""
    disk: int | None = None
    """Bytes a second that the disk with the weights delivers."""
    bf16: bool | None = None
    """Whether the card computes in bf16. NVIDIA cards do since the RTX 30 series."""
    width: int | None = None
    height: int | None = None
    count: int | None = None
    steps: int | None = None
    frames: int | None = None
    """Of a video, with the catalog's first motion adapter for the model's family."""
    precision: str = "auto"
    offload: str = "auto"
    controlnet: tuple[str, ...] = ()
    """ControlNets to add: file names, or sizes (``2.5GB``)."""
    lora: tuple[str, ...] = ()
    """LoRAs to add: file names, or sizes."""


FIELDS = tuple(field.name for field in fields(PlanQuery))


def parse_query(values: Mapping[str, str]) -> PlanQuery:
    """The query in ``values``, as strings from a URL or a command line. Raises InvalidParameter."""
    unknown = [name for name in values if name not in FIELDS]
    if unknown:
        raise InvalidParameter(unknown[0], f"unknown parameter {unknown[0]!r}; use {', '.join(FIELDS)}")
    parsed: dict[str, Any] = {}
    for name, text in values.items():
        if name in ("vram", "ram", "disk"):
            parsed[name] = parse_bytes(name, text)
        elif name in ("width", "height", "count", "steps", "frames"):
            parsed[name] = parse_count(name, text)
        elif name == "card":
            parsed[name] = parse_card_name(text)
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


def parse_card_name(text: str) -> str:
    """The name in the table of cards. Raises InvalidParameter."""
    card = find_card(text)
    if card is None:
        raise InvalidParameter(
            "card", f"card {text!r} is not known; known are {', '.join(known_cards())}. For another, write its memory "
            "(vram 8GB)",
        )  # fmt: skip
    return card.name


def parse_count(name: str, text: str) -> int:
    """A whole number above zero. Raises InvalidParameter."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise InvalidParameter(name, f"{name} {text!r} is not a whole number above 0")
    return int(text)


def asked_shapes(
    model: Model, shapes: Mapping[str, ComponentShape], query: PlanQuery, locate: Locate
) -> dict[str, ComponentShape]:
    """``shapes`` with the adapters of ``query``. Raises InvalidParameter, or WeightsMissing for a damaged file."""
    controls = [asked_control(name, model, locate) for name in query.controlnet]
    loras = sum(asked_lora(name, locate) for name in query.lora)
    denoiser = family_of(model.family).denoiser
    motion = asked_motion(model) if query.frames is not None else None
    return with_adapters(shapes, denoiser, controls, loras, motion) if controls or loras or motion else dict(shapes)


def asked_motion(model: Model) -> ComponentShape:
    """The shape of the motion adapter for ``model``. Raises InvalidParameter where it makes no videos."""
    entries = auxiliary_catalog().motions.values()
    found = next((entry for entry in entries if entry.family == model.family), None)
    if found is None:
        raise InvalidParameter("frames", f"{model.name}, a {model.family} model, makes no videos")
    return ComponentShape(found.download_bytes // PUBLISHED_BYTES)


def asked_control(name: str, model: Model, locate: Locate) -> ComponentShape:
    """The shape of a ControlNet, from its file, from the catalog, or from its size in bytes."""
    path, known = locate("controlnet", name), auxiliary_catalog().controlnets.get(name)
    if path is None and known is None and SIZE.fullmatch(name) is None:
        names = ", ".join(name for name, own in auxiliary_catalog().controlnets.items() if own.family == model.family)
        raise InvalidParameter(
            "controlnet",
            f"there is no ControlNet {name!r} in models/controlnet; the catalog has {names or 'none'} for "
            f"{model.family}. Use one of these, or give its size: 2.5GB",
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
    """The bytes of a LoRA, from its file or as given."""
    path = locate("lora", name)
    if path is not None:
        return path.stat().st_size
    if SIZE.fullmatch(name) is None:
        raise InvalidParameter("lora", f"there is no LoRA {name!r} in models/loras; or give its size: 300MB")
    return parse_bytes("lora", name)


def workload_for(model: Model, query: PlanQuery) -> Workload:
    """The workload of ``query``, with the model's defaults. Raises InvalidParameter for values outside its limits."""
    defaults, limits = model.defaults, model.limits
    width = query.width or query.height or defaults.width
    workload = Workload(
        width, query.height or width, query.count or 1, query.steps or defaults.num_inference_steps, model.passes,
        query.frames or 1,
    )  # fmt: skip
    limits.width.check("width", workload.width)
    limits.height.check("height", workload.height)
    limits.num_images.check(workload.count)
    limits.num_inference_steps.check(workload.steps)
    return workload


def machine_for(query: PlanQuery, here: Machine) -> Machine:
    """The machine of ``query``. Values that the query leaves out are those of ``here``.

    Subtracts the CUDA context from a card's memory, and what the system and a desktop use from RAM.
    """
    machine, card = here, known_cards()[query.card] if query.card else None
    if card is not None and query.vram != 0:
        free = (card.vram if query.vram is None else query.vram) - CONTEXT_BYTES
        machine = card.described(Machine("cuda", max(0, free), here.free_ram, bf16=True, fp16=True))
    elif query.vram == 0:
        machine = Machine("cpu", 0, here.free_ram, bf16=True, fp16=True)
    elif query.vram is not None:
        machine = Machine("cuda", max(0, query.vram - CONTEXT_BYTES), here.free_ram, bf16=True, fp16=True)
    if query.ram is not None:
        machine = replace(machine, free_ram=max(0, query.ram - min(SYSTEM_RAM_BYTES, query.ram // 4)))
    if query.disk is not None:
        machine = replace(machine, disk_rate=float(max(query.disk, 1)), disk_from="given")
    return machine if query.bf16 is None else replace(machine, bf16=query.bf16)


def plan_for(
    model: Model,
    shapes: Mapping[str, ComponentShape],
    query: PlanQuery,
    here: Machine,
    *,
    force_upcast_vae: bool | None = None,
) -> tuple[Machine, Workload, Plan]:
    """The machine, the workload and the plan of ``query``. Raises InvalidParameter."""
    if not shapes:
        raise InvalidParameter(
            "model", f"the size of model {model.name!r} is unknown until its files are on this machine; download them"
        )
    machine, workload = machine_for(query, here), workload_for(model, query)
    upcast = model.force_upcast_vae if force_upcast_vae is None else force_upcast_vae

    def planned() -> Plan:
        return make_plan(
            family_of(model.family).costs, shapes, machine, workload, query.precision, query.offload,
            force_upcast_vae=upcast,
        )  # fmt: skip

    plan = planned()
    if plan.reads_files and query.disk is None:
        rate = rate_of_files(local_files(model, model.variant(workload.steps)))
        if rate is not None:
            machine = replace(machine, disk_rate=rate, disk_from="measured")
            plan = planned()
    return machine, workload, plan


def plan_document(model: Model, machine: Machine, workload: Workload, plan: Plan) -> dict[str, Any]:
    """The answer as JSON. ``table`` in it is the text that ``imagegen plan`` prints."""
    return {
        "model": model.name,
        "machine": asdict(machine),
        "picture": asdict(workload),
        "plan": as_json(plan),
        "table": text(model, machine, workload, plan),
    }


def text(model: Model, machine: Machine, workload: Workload, plan: Plan) -> str:
    """The answer as text."""
    count = f"{workload.count} images of " if workload.count > 1 else ""
    head = f"{model.title}: {count}{workload.width}x{workload.height}, {workload.steps} steps"
    return f"{head}\non {machine_text(machine)}\n\n{table(plan)}"


def machine_text(machine: Machine) -> str:
    """The machine and its free memory, as text."""
    named = f"an {machine.card}" if machine.card[:1] in ("A", "H", "L", "R") else f"a {machine.card or 'card'}"
    card = f"{named} with {gigabytes(machine.free_vram)} free" if machine.own_memory else f"a {machine.device.upper()}"
    return f"{card}, {gigabytes(machine.free_ram)} of RAM free"
