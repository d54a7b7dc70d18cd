"""``python -m neurolux.library.plan_command``: plan any model on any card, without torch, ComfyUI or a service.

``imagegen plan`` runs this in a separate process and forwards its output. Exit code 0: the plan fits, 1: it does not
fit, 2: an argument is invalid.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..adapters.detect import AdapterKind
from ..catalog.models import Model
from ..catalog.reading import read_catalog
from ..errors import InvalidParameter, NeuroLuxError
from ..families.registry import family_of
from ..planning.cards import BF16_SINCE, LANE_RATES, find_card
from ..planning.records import (
    Machine,
    Plan,
    Workload,
    gigabytes,
)
from ..planning.report import aligned_columns, seconds
from .local_models import MeasuredModel, measured_model
from .plan_query import FIELDS, PlanQuery, asked_shapes, parse_query, plan_document, plan_for

CARDS = tuple(size * 10**9 for size in (4, 6, 8, 12, 16, 24, 32, 48, 80))
CPU_RAMS = tuple(size * 10**9 for size in (8, 16, 32, 64))
CARDS_RAM = 32 * 10**9
"""RAM in bytes that ``--all-cards`` assumes unless ``--ram`` is given."""
FITS, DOES_NOT_FIT, INVALID = 0, 1, 2
SIZE = re.compile(r"(\d+)(?:[xX](\d+))?")
HEADER = ("card", "precision", "offload", "blocks that stay", "decode", "peak VRAM", "peak RAM", "transfers", "fits")


def make_parser() -> argparse.ArgumentParser:
    """The argument parser. plan_query parses the values, so errors are the same as the route's."""
    parser = argparse.ArgumentParser(prog="neurolux.library.plan_command", description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--size")
    for name in FIELDS:
        parser.add_argument(f"--{name}")
    parser.add_argument("--models", action="append", type=Path, default=[], help="a models folder of ComfyUI")
    parser.add_argument("--gpu", default="", help="this machine's card: free memory, compute capability, bus and name")
    parser.add_argument("--all-cards", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan for the arguments ``argv``. Returns the exit code."""
    args = make_parser().parse_args(argv)
    values = {name: value for name in FIELDS if (value := getattr(args, name)) is not None}
    catalog = read_catalog()
    try:
        values |= pixels(args.size)
        query = parse_query(values)
        names = [args.model] if args.model or not args.all_cards else list(catalog.models)
        asked = [measured_model(name, catalog, args.models, query.steps) for name in names]
        locate = partial(adapter_path, tuple(args.models))
        asked = [replace(one, shapes=asked_shapes(one.model, one.shapes, query, locate)) for one in asked]
        if args.all_cards:
            answers = [(one.model, list(all_cards(one, query))) for one in asked]
            print(json.dumps(cards_json(answers), indent=2) if args.json else cards_text(answers))
            return FITS
        machine, workload, plan = measured_plan(asked[0], query, this_machine(args.gpu))
    except NeuroLuxError as error:
        print(str(error), file=sys.stderr)
        return INVALID
    answer = plan_document(asked[0].model, machine, workload, plan)
    print(json.dumps(answer, indent=2) if args.json else answer["table"])
    return FITS if plan.fits else DOES_NOT_FIT


def measured_plan(asked: MeasuredModel, query: PlanQuery, here: Machine) -> tuple[Machine, Workload, Plan]:
    """``plan_for`` a measured model. Its note about the sizes becomes a reason of the plan."""
    machine, workload, plan = plan_for(
        asked.model, asked.shapes, query, here, force_upcast_vae=asked.force_upcast_vae
    )  # fmt: skip
    return machine, workload, replace(plan, reasons=(*plan.reasons, *([asked.note] if asked.note else [])))


def adapter_path(models: Iterable[Path], kind: AdapterKind, name: str) -> Path | None:
    """The LoRA or ControlNet called ``name`` below the folders ``models``, or at that path; None if there is none."""
    folder = {"lora": "loras", "controlnet": "controlnet"}[kind]
    candidates = [path for root in models for path in (root / folder / name, root / folder / f"{name}.safetensors")]
    return next((path for path in (*candidates, Path(name).expanduser()) if path.exists()), None)


def pixels(size: str | None) -> dict[str, str]:
    """Width and height from ``1024`` or ``1024x768``. Raises InvalidParameter."""
    if size is None:
        return {}
    match = SIZE.fullmatch(size)
    if match is None:
        raise InvalidParameter("size", f"size {size!r} is not a size in pixels; write 1024 or 1024x768")
    return {"width": match[1], "height": match[2] or match[1]}


def all_cards(asked: MeasuredModel, query: PlanQuery) -> Iterator[tuple[str, dict, Plan]]:
    """The plans of a model for common card sizes, then for a CPU with common RAM sizes."""
    nowhere = Machine("cpu", 0, 0, bf16=True, fp16=True)
    ram = query.ram if query.ram is not None else CARDS_RAM
    questions = [(f"{card / 1e9:.0f} GB", replace(query, vram=card, ram=ram)) for card in CARDS]
    questions += [(f"CPU, {size / 1e9:.0f} GB RAM", replace(query, vram=0, ram=size)) for size in CPU_RAMS]
    for label, question in questions:
        machine, workload, plan = measured_plan(asked, question, nowhere)
        yield label, plan_document(asked.model, machine, workload, plan), plan


def cards_json(answers: Sequence[tuple[Model, Sequence[tuple[str, dict, Plan]]]]) -> list[dict]:
    """The plans as a list of JSON documents."""
    return [{"card": label, **document} for _, rows in answers for label, document, _ in rows]


def cards_text(answers: Sequence[tuple[Model, Sequence[tuple[str, dict, Plan]]]]) -> str:
    """The plans as text, with one table per model."""
    parts = []
    for model, rows in answers:
        workload = rows[0][1]["picture"]
        machine = rows[0][1]["machine"]
        title = f"{model.name}: {workload['width']}x{workload['height']}, {workload['steps']} steps; "
        title += f"with a card, {gigabytes(machine['free_ram'])} of RAM free"
        lines = aligned_columns([HEADER, *(card_row(label, model, plan) for label, _, plan in rows)], right=(5, 6, 7))
        parts.append("\n".join([title, "", *lines]))
    return "\n\n".join(parts)


def card_row(label: str, model: Model, plan: Plan) -> tuple[str, ...]:
    """One row of the table of cards."""
    denoiser = plan.components[family_of(model.family).denoiser]
    stay = "all" if denoiser.placement == "resident" else "none"
    if denoiser.placement in ("stream", "disk"):
        stay = f"{denoiser.resident_blocks} of {denoiser.blocks}"
    return (
        label,
        plan.precision,
        plan.offload,
        stay,
        "whole" if plan.vae_tile is None else f"{plan.vae_tile} tiles",
        gigabytes(plan.peak_vram) if plan.peak_vram else "",
        gigabytes(plan.peak_ram),
        seconds(plan.transfer_seconds),
        "yes" if plan.fits else "no",
    )


def this_machine(gpu: str) -> Machine:
    """This machine with its free memory. ``gpu`` is its card, as nvidia-smi lists it: free MiB, compute capability,
    the most generations and lanes of PCIe that card and slot have, and the name: ``7940, 8.6, 4, 16, NVIDIA GeForce
    RTX 3060``."""
    ram = free_ram()
    mebibytes, capability, generation, lanes, name = ([part.strip() for part in gpu.split(",")] + [""] * 5)[:5]
    try:
        machine = Machine(
            "cuda", max(0, int(mebibytes) * 2**20), ram, bf16=float(capability) >= BF16_SINCE, fp16=True
        )  # fmt: skip
    except ValueError:
        return Machine("cpu", 0, ram, bf16=True, fp16=True)
    card = find_card(name)
    machine = card.described(machine) if card is not None else replace(machine, card=name)
    try:
        return replace(machine, transfer_rate=LANE_RATES[int(generation)] * int(lanes))
    except (KeyError, ValueError):  # a virtual machine does not tell
        return machine


def free_ram() -> int:
    """Bytes of available RAM, or of all RAM if the system does not report what is available."""
    memory = Path("/proc/meminfo")
    if memory.is_file():
        for line in memory.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


if __name__ == "__main__":
    sys.exit(main())
