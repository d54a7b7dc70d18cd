"""The commands for the whole installation: queue, pause, resume, unload."""

from __future__ import annotations

import argparse
from datetime import datetime

from bridge.commands.generate import add_connection, connect
from bridge.commands.tables import print_table
from bridge.contract import QueueState, UnloadOutcome, WorkerUnload, size_text
from bridge.terminal import show

FAILED = (UnloadOutcome.BUSY, UnloadOutcome.UNREACHABLE)


def add_parsers(subparsers: argparse._SubParsersAction) -> None:
    """Add the parsers of this module."""
    queue = subparsers.add_parser("queue", help="show whether the queue is paused, and how many jobs wait and run")
    queue.add_argument("--json", action="store_true", help="print the answer of the service as JSON")
    queue.set_defaults(run=queue_command)

    pause = subparsers.add_parser(
        "pause",
        help="pause the queue: running jobs continue, no other job starts",
        description="Pause the queue, for all workers and through restarts. Jobs are still accepted, and wait.",
    )
    pause.add_argument("--reason", metavar="TEXT", help="shown to everybody who asks for the state of the queue")
    pause.set_defaults(run=pause_command)

    resume = subparsers.add_parser("resume", help="resume the queue after a pause")
    resume.set_defaults(run=resume_command)

    unload = subparsers.add_parser("unload", help="free device memory; the next job loads its model again")
    unload.add_argument("model", nargs="?", help="a name that 'imagegen models' lists (all models)")
    unload.add_argument("--worker", metavar="ID", help="a name that 'imagegen workers' lists (all workers)")
    unload.add_argument("--json", action="store_true", help="print the answer of the service as JSON")
    unload.set_defaults(run=unload_command)

    for parser in (queue, pause, resume, unload):
        add_connection(parser)


def queue_command(args: argparse.Namespace) -> int:
    """`imagegen queue`"""
    with connect(args) as client:
        state = client.queue()
    show(state.model_dump_json(indent=2) if args.json else _text(state))
    return 0


def pause_command(args: argparse.Namespace) -> int:
    """`imagegen pause`"""
    with connect(args) as client:
        show(_text(client.pause(args.reason)))
    return 0


def resume_command(args: argparse.Namespace) -> int:
    """`imagegen resume`"""
    with connect(args) as client:
        show(_text(client.resume()))
    return 0


def unload_command(args: argparse.Namespace) -> int:
    """`imagegen unload`"""
    with connect(args) as client:
        answer = client.unload_model(args.model, worker_id=args.worker)
    if args.json:
        show(answer.model_dump_json(indent=2))
    else:
        print_table([("WORKER", "OUTCOME", "FREED", "MODELS", ""), *map(_row, answer.workers)])
    return 1 if any(worker.outcome in FAILED for worker in answer.workers) else 0


def _row(worker: WorkerUnload) -> tuple[str, ...]:
    outcome = worker.outcome.value.replace("_", " ")
    return (worker.worker_id, outcome, size_text(worker.freed_bytes), ", ".join(worker.models) or "-", worker.message)


def _text(state: QueueState) -> str:
    jobs = f"{state.waiting} jobs wait, {state.running} run"
    if not state.paused:
        return f"running; {jobs}"
    since = datetime.fromtimestamp(state.since or 0).strftime("%Y-%m-%d %H:%M:%S")
    reason = f": {state.reason}" if state.reason else ""
    return f"paused since {since} by {state.by}{reason}; {jobs}"
