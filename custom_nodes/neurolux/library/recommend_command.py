"""``python -m neurolux.library.recommend_command``: the best model for a machine, without torch, ComfyUI or a service.

``imagegen models --recommend`` runs this in a separate process and forwards its output. Exit code 0, or 2: an argument
is invalid.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..catalog.reading import read_catalog
from ..errors import NeuroLuxError
from ..planning.costs import CONTEXT_BYTES
from .local_models import folder_shelf, holds_files
from .plan_command import INVALID, this_machine
from .plan_query import machine_for, parse_query
from .recommendation import choose, document, lines, models_here, own_choice, plan_model, with_local

FIELDS = ("card", "vram", "ram")


def make_parser() -> argparse.ArgumentParser:
    """The argument parser. plan_query parses the values, so errors are the same as those of a plan."""
    parser = argparse.ArgumentParser(prog="neurolux.library.recommend_command", description=__doc__)
    for name in FIELDS:
        parser.add_argument(f"--{name}")
    parser.add_argument("--models", action="append", type=Path, default=[], help="a models folder of ComfyUI")
    parser.add_argument("--gpu", default="", help="this machine's card, as plan_command takes it, with all its memory")
    parser.add_argument("--json", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the recommendation for the arguments ``argv``. Returns the exit code."""
    args = make_parser().parse_args(argv)
    values = {name: value for name in FIELDS if (value := getattr(args, name)) is not None}
    here = this_machine(args.gpu)
    here = replace(here, free_vram=max(0, here.free_vram - CONTEXT_BYTES))
    try:
        query = parse_query({"ram": str(total_ram()), **values})
    except NeuroLuxError as error:
        print(str(error), file=sys.stderr)
        return INVALID
    shipped = read_catalog()
    folders = [root / "diffusers" for root in args.models]
    catalog = with_local(shipped, folders, folder_shelf(args.models) if holds_files(args.models) else None)
    machine = machine_for(query, here)
    candidates = [plan_model(model, machine) for model in shipped.models.values()]
    choice = choose(candidates, models_here(shipped, catalog), shipped.fallback)
    default = own_choice(catalog) or choice.default
    print(json.dumps(document(choice, default), indent=2) if args.json else "\n".join(lines(choice, default)))
    return 0


def total_ram() -> int:
    """Bytes of RAM in all. What is free at the moment would give another answer while something else runs."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


if __name__ == "__main__":
    sys.exit(main())
