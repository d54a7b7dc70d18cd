"""The `imagegen` command. Every known error becomes one line and exit code 1 here."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from bridge import __version__, tracing
from bridge.client import ClientError
from bridge.commands import control, doctor, generate, jobs, overlay, plan, processes, service, workers
from bridge.contract import BridgeError
from bridge.service.errors import ServiceError
from bridge.settings import SettingsError
from bridge.terminal import show

INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="imagegen",
        description="Generate images from prompts, with FLUX, Z-Image, Qwen-Image, Chroma or SDXL in ComfyUI.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (generate, jobs, control, plan, workers, service, doctor, overlay, processes):
        module.add_parsers(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = make_parser().parse_args(argv)
    try:
        # The variable by which build systems and shells pass a trace on; the service takes its own from requests.
        with tracing.entered(tracing.Trace.read(os.environ.get("TRACEPARENT"), os.environ.get("TRACESTATE"))):
            return args.run(args)
    except ClientError as error:
        show(f"imagegen: {_client_message(error)}", file=sys.stderr)
    except (ServiceError, SettingsError, BridgeError, OSError) as error:
        show(f"imagegen: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        show("imagegen: stopped", file=sys.stderr)
        return INTERRUPTED
    return 1


def _client_message(error: ClientError) -> str:
    """The message, and every bad field if there are several."""
    details = error.error.details
    if len(details) <= 1:
        return error.error.message
    return "\n  ".join(["these values are wrong:", *(detail.message for detail in details)])
