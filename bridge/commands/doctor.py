"""`imagegen doctor`: one page about this machine and its state folder, to read or to paste into an issue."""

from __future__ import annotations

import argparse
import asyncio
import json

from bridge.commands.options import NATS, WHERE, add_settings, settings_of
from bridge.service.doctor.examination import examine
from bridge.terminal import show

NOT_HEALTHY = 1


def add_parsers(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of this module."""
    doctor = subparsers.add_parser(
        "doctor",
        help="check the state folder, and print a page for bug reports",
        description="Print versions, devices, free space, ports and models, and check the files of the state folder. "
        "The page holds no secrets and no prompts. Exit code 0: healthy; 1: something needs attention.",
    )
    doctor.add_argument("--repair", action="store_true", help="repair what can be repaired; stop the service first")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    add_settings(doctor, (*WHERE, "comfyui_dir", "min_free_disk_bytes", *NATS))
    doctor.set_defaults(run=doctor_command)


def doctor_command(args: argparse.Namespace) -> int:
    """`imagegen doctor`"""
    report = asyncio.run(examine(settings_of(args), repair=args.repair))
    show(json.dumps(report.as_dict(), indent=2) if args.json else report.text())
    return 0 if report.healthy else NOT_HEALTHY
