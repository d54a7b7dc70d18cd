"""The commands about jobs and modes of a service: jobs, cancel, modes."""

from __future__ import annotations

import argparse
import itertools
import json
from datetime import datetime

from bridge.commands.generate import add_connection, connect
from bridge.commands.progress_bar import count_text, phase_name
from bridge.commands.tables import print_table
from bridge.contract import JobState, JobStatus, duration_text
from bridge.settings import SettingsError
from bridge.terminal import show

DEFAULT_LIMIT = 20


def add_parsers(subparsers: argparse._SubParsersAction) -> None:
    """Add the parsers of this module."""
    jobs = subparsers.add_parser("jobs", help="list jobs, newest first")
    jobs.add_argument("--status", choices=list(JobStatus), help="only jobs in this state")
    jobs.add_argument("--mode", help="only jobs of this mode")
    jobs.add_argument("--model", help="only jobs of this model")
    jobs.add_argument(
        "--since", metavar="TIME", help="only jobs submitted since then (2026-01-31T12:00, or seconds since the epoch)"
    )
    jobs.add_argument("--limit", type=int, default=DEFAULT_LIMIT, help="the number of jobs to list (%(default)s)")
    jobs.add_argument("--json", action="store_true", help="print one JSON object a line")
    jobs.set_defaults(run=jobs_command)

    cancel = subparsers.add_parser("cancel", help="cancel a job that waits or runs, or all jobs")
    cancel.add_argument("job_id", metavar="ID", nargs="?", help="the id that 'imagegen jobs' prints")
    cancel.add_argument("--all", action="store_true", help="cancel every job that waits")
    cancel.add_argument("--running", action="store_true", help="with --all: those that run, too")
    cancel.set_defaults(run=cancel_command)

    modes = subparsers.add_parser("modes", help="list the saved graphs, or the parameters of one of them")
    modes.add_argument("name", nargs="?", help="the mode whose parameters to print")
    modes.add_argument("--json", action="store_true", help="print the answer of the service as JSON")
    modes.set_defaults(run=modes_command)

    for parser in (jobs, cancel, modes):
        add_connection(parser)


def jobs_command(args: argparse.Namespace) -> int:
    """`imagegen jobs`"""
    filters = {"status": args.status, "mode": args.mode, "model": args.model, "since": args.since}
    with connect(args) as client:
        states = list(itertools.islice(client.jobs(**filters), max(0, args.limit)))
    if args.json:
        for state in states:
            show(state.model_dump_json())
        return 0
    rows = [("ID", "STATUS", "SUBMITTED", "MODE", "MODEL", "")]
    rows += [_row(state) for state in states]
    print_table(rows)
    return 0


def _row(state: JobState) -> tuple[str, ...]:
    submitted = datetime.fromtimestamp(state.submitted_at).strftime("%Y-%m-%d %H:%M:%S")
    return (state.job_id, state.status.value, submitted, state.mode, state.model or "", _about(state))


def _about(state: JobState) -> str:
    if state.position is not None:
        wait = "" if state.wait_seconds is None else f", starts in about {duration_text(state.wait_seconds)}"
        rank = "" if state.priority == "normal" else f", priority {state.priority}"
        return f"{state.position} ahead{wait}{rank}" + (", the queue is paused" if state.paused else "")
    if state.progress is not None and state.progress.maximum:
        return f"{phase_name(state.progress)} {count_text(state.progress)}"
    if state.status is JobStatus.DONE:
        return f"{len(state.images)} images, {state.generation_time_ms / 1000:.1f} s"
    return state.error.message if state.error else ""


def cancel_command(args: argparse.Namespace) -> int:
    """`imagegen cancel`"""
    if bool(args.job_id) == args.all or (args.running and not args.all):
        raise SettingsError("name one job, or cancel all with --all (and --running)")
    with connect(args) as client:
        if args.job_id:
            show(client.cancel(args.job_id).message)
            return 0
        counts = client.cancel_all(running=args.running)
    show(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts if count) or "no job waits")
    return 0


def modes_command(args: argparse.Namespace) -> int:
    """`imagegen modes`"""
    with connect(args) as client:
        if args.name:
            _print_mode(client.mode(args.name), as_json=args.json)
            return 0
        answer = client.modes()
    if args.json:
        show(answer.model_dump_json(indent=2))
        return 0
    rows = [("MODE", "TITLE", "")]
    rows += [
        (mode.name, mode.title, f"cannot be used: {mode.error.message}" if mode.error else mode.description)
        for mode in answer.details
    ]
    print_table(rows)
    return 0


def _print_mode(schema: dict, *, as_json: bool) -> None:
    if as_json:
        show(json.dumps(schema, indent=2))
        return
    rows = [("PARAMETER", "TYPE", "DEFAULT", "")]
    for name, field in schema["properties"].items():
        kinds = field.get("type") or [option["type"] for option in field.get("anyOf", []) if "type" in option]
        kinds = [kinds] if isinstance(kinds, str) else kinds
        shown = field.get("format") or "/".join(kind for kind in kinds if kind != "null")
        default = "(required)" if name in schema["required"] else json.dumps(field.get("default"))
        rows.append((name, shown, default, field.get("description", "")))
    print_table(rows)
