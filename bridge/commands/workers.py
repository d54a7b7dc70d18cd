"""`imagegen workers`: the workers, their jobs, and the age of their last heartbeat."""

from __future__ import annotations

import argparse

from bridge.commands.generate import add_connection, connect
from bridge.commands.tables import print_table
from bridge.contract import WorkerEntry
from bridge.terminal import show

GIB = 1024**3


def add_parsers(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of this module."""
    workers = subparsers.add_parser(
        "workers",
        help="list the workers",
        description="List the workers that sent a heartbeat in the last minute, on this machine and others.",
    )
    workers.add_argument("--json", action="store_true", help="print JSON")
    add_connection(workers)
    workers.set_defaults(run=workers_command)


def workers_command(args: argparse.Namespace) -> int:
    """`imagegen workers`"""
    with connect(args) as client:
        listed = client.workers()
    if args.json:
        show(listed.model_dump_json(indent=2))
        return 0
    rows = [("WORKER", "COMFYUI", "DEVICE", "VRAM FREE", "JOBS", "MODELS", "HEARD")]
    rows += [_row(worker) for worker in listed.workers]
    print_table(rows)
    return 0


def _row(worker: WorkerEntry) -> tuple[str, ...]:
    free, total = worker.vram_free_bytes, worker.vram_total_bytes
    return (
        worker.worker_id,
        "up" if worker.comfyui_up else "down",
        worker.device or "-",
        f"{free / GIB:.1f} of {total / GIB:.1f} GiB" if free is not None and total else "-",
        str(len(worker.running)),
        ", ".join(worker.loaded_models) or "-",
        f"{worker.age_seconds:.0f} s ago",
    )
