"""``python -m neurolux.dry_run.command --comfyui FOLDER``: execute plans on cards that are not there.

``imagegen plan --dry-run`` runs this for one machine, ``make dry-run`` for the matrix of them. Exit code 0: every plan
held what it promised, 1: one did not, 2: an argument is invalid.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog.auxiliary import auxiliary_catalog
from ..catalog.models import Model
from ..catalog.reading import read_catalog
from ..errors import InvalidParameter, NeuroLuxError
from ..families.registry import family_of
from ..library.plan_command import pixels
from ..library.plan_query import PlanQuery, asked_shapes, parse_query, plan_for
from ..planning.cards import known_cards
from ..planning.records import Machine, gigabytes
from ..planning.report import aligned_columns

if TYPE_CHECKING:
    from .records import Case, Outcome, Task

GB = 10**9
CARDS_GB = (4, 6, 8, 12, 16, 24, 80)
RAMS_GB = (16, 32, 64)
FRAMES = 16
MODES = ("none", "model", "stream", "sequential", "disk")
HEADER = (
    "model", "card", "RAM", "task", "precision", "offload", "planned VRAM", "on the card", "planned RAM", "in RAM",
    "pinned", "to the card", "result",
)  # fmt: skip
HELD, BROKEN, INVALID = 0, 1, 2


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="neurolux.dry_run.command", description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--model")
    for name in ("vram", "card", "ram", "precision", "offload", "size"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--matrix", action="store_true", help="every model (or --model) on the usual cards")
    parser.add_argument("--every-mode", action="store_true", help="with --matrix: each offload mode, not only auto")
    parser.add_argument(
        "--every-task", action="store_true", help="with --matrix: image to image, ControlNets and videos too"
    )
    parser.add_argument("--sweep", type=int, help="let memory run out at each N-th allocation of an image")
    parser.add_argument("--json", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print."""
    args = make_parser().parse_args(argv)
    prepare(args.comfyui)
    try:
        if args.sweep is not None:
            return swept(one(args), args.sweep)
        cases = list(matrix(args)) if args.matrix else [one(args)]
        return report(cases, as_json=args.json)
    except NeuroLuxError as error:
        print(str(error), file=sys.stderr)
        return INVALID


def prepare(comfyui: Path) -> None:
    """Make ComfyUI importable, which computes nothing here, and quiet what only concerns real runs."""
    sys.path.append(str(comfyui))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import diffusers

    diffusers.logging.set_verbosity_error()


def one(args: argparse.Namespace) -> Case:
    """The case that the options describe."""
    from .records import Case
    from .run import Subject

    given = {name: getattr(args, name) for name in ("vram", "card", "ram", "precision", "offload")}
    query = parse_query({name: value for name, value in given.items() if value is not None} | pixels(args.size))
    more: dict[str, Any] = {"task": work_of(Subject.of_catalog(args.model).model, "text-to-image")}
    card = known_cards()[query.card] if query.card else None
    vram = card.vram if card is not None and query.vram is None else query.vram
    if not vram or query.ram is None:
        raise InvalidParameter("vram", "a dry run needs a card and a machine: --vram 8GB --ram 32GB")
    if query.width != query.height:
        raise InvalidParameter("size", "a dry run makes square images; write --size 1024")
    if card is not None:
        more["capability"] = tuple(int(part) for part in str(card.capability).split("."))
    return Case(args.model, vram, query.ram, query.offload, query.precision, query.width, **more)


def swept(case: Case, every: int) -> int:
    """Let memory run out while an image is made, and print what came of it; returns the exit code."""
    from .run import Subject
    from .sweep import Sweep

    if every < 1:
        raise InvalidParameter("sweep", f"sweep {every} is not a whole number above 0; 1 tries every allocation")
    done = Sweep(case, Subject.of_catalog(case.model), every).run()
    print(
        f"{case.model}: memory ran out at {done.tried} allocations; {done.survived} images were made all the same, "
        f"{done.tried - done.survived} ended with a remedy; wrong: {len(done.problems)}"
    )
    for problem in done.problems:
        print(problem)
    return BROKEN if done.problems else HELD


def matrix(args: argparse.Namespace) -> Iterator[Case]:
    """Every model on every card with every size of RAM, once for plans that are equal."""
    modes = MODES if args.every_mode else (args.offload or "auto",)
    tasks: tuple[Task, ...] = (
        ("text-to-image", "image-to-image", "controlnet", "video") if args.every_task else ("text-to-image",)
    )
    from .architectures import known_architectures
    from .records import Case

    catalog = read_catalog().models
    here = Machine("cpu", 0, 0, bf16=True, fp16=True)
    for name in [args.model] if args.model else known_architectures():
        seen: set[str] = set()
        for card, ram, mode, task in product(CARDS_GB, RAMS_GB, modes, tasks):
            model = catalog[name]
            if not does(model, task):
                continue
            query = PlanQuery(
                vram=card * GB, ram=ram * GB, offload=mode, frames=FRAMES if task == "video" else None,
                controlnet=(published_controlnet(model),) if task == "controlnet" else (),
            )  # fmt: skip
            shapes = asked_shapes(model, model.components, query, lambda kind, name: None)
            _, _, plan = plan_for(model, shapes, query, here)
            key = f"{replace(plan, reasons=())} {task}"
            if plan.fits and key not in seen:
                seen.add(key)
                yield Case(
                    name, card * GB, ram * GB, mode, task=work_of(model, task), frames=FRAMES if task == "video" else 1
                )


def does(model: Model, task: Task) -> bool:
    """Whether ``model`` can be asked for ``task``."""
    if task == "controlnet":
        return family_of(model.family).controls is not None and model.purpose == "any"
    if task == "image-to-image" and model.purpose != "any":
        return False
    return task == "text-to-image" or (task, None) in family_of(model.family).pipelines


def work_of(model: Model, task: Task) -> Task:
    """What is done for ``task``: a model that only fills fills."""
    return "fill" if (task, model.purpose) == ("text-to-image", "fill") else task


def published_controlnet(model: Model) -> str:
    """The name of the catalog's first ControlNet for ``model``."""
    return next(name for name, one in auxiliary_catalog().controlnets.items() if one.family == model.family)


def report(cases: Sequence[Case], *, as_json: bool) -> int:
    """Run ``cases`` and print a line each; returns the exit code."""
    from .run import run_case

    rows, broken = [], 0
    started = time.monotonic()
    for number, case in enumerate(cases, 1):
        try:
            outcome = run_case(case)
        except Exception as error:  # one plan that cannot be executed is a row of the table, not its end
            broken += 1
            rows.append(failed_row(case, error))
        else:
            problems = list(outcome.problems())
            broken += bool(problems)
            rows.append(row(outcome, problems))
        if not as_json and len(cases) > 1:
            print(f"{number}/{len(cases)} {'  '.join(rows[-1])}", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps([dict(zip(HEADER, found, strict=True)) for found in rows], indent=2))
    else:
        print("\n".join(aligned_columns([HEADER, *rows], right=(6, 7, 8, 9, 10, 11))))
        took = time.monotonic() - started
        print(
            f"\nplans executed: {len(rows)} in {took:.0f} s; did not hold what they promised: {broken}", file=sys.stderr
        )
    return BROKEN if broken else HELD


def failed_row(case: Case, error: Exception) -> tuple[str, ...]:
    """A line of the table for a case that was not executed to its end."""
    empty = ("",) * (len(HEADER) - 7)
    machine = (f"{case.vram / GB:g} GB", f"{case.ram / GB:g} GB")
    text = f"{type(error).__name__}: {error}".split("\n")[0]
    return (case.model, *machine, case.task, case.precision, case.offload, *empty, text)


def row(outcome: Outcome, problems: Sequence[str]) -> tuple[str, ...]:
    """A line of the table."""
    case, plan = outcome.case, outcome.finished_with or outcome.plan
    return (
        case.model, f"{case.vram / GB:g} GB", f"{case.ram / GB:g} GB", case.task, plan.precision, plan.offload,
        gigabytes(plan.peak_vram), gigabytes(outcome.card), gigabytes(plan.peak_ram), gigabytes(outcome.ram),
        gigabytes(outcome.pinned), gigabytes(outcome.to_card), "; ".join(problems) or "held",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
