"""The commands that run one process of the service: worker and gateway. `imagegen up` starts both."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any

from bridge import logs, tracing
from bridge.alive import beat
from bridge.commands.options import GATEWAY, WORKER, add_settings, settings_of
from bridge.settings import SettingsError


def add_parsers(subparsers: argparse._SubParsersAction) -> None:
    """Add the parsers of this module."""
    gateway = subparsers.add_parser(
        "gateway",
        help="run only the gateway (REST and NATS APIs), on an existing NATS server",
        description="Answer requests over REST and NATS. Workers on the same NATS server run the jobs.",
    )
    add_settings(gateway, GATEWAY)
    gateway.set_defaults(run=gateway_command)

    worker = subparsers.add_parser(
        "worker",
        help="run only a worker, for a running ComfyUI",
        description="Take jobs from the queue on a NATS server and run them on one ComfyUI.",
    )
    add_settings(worker, WORKER)
    worker.set_defaults(run=worker_command)


def gateway_command(args: argparse.Namespace) -> int:
    """`imagegen gateway`"""
    settings = settings_of(args)
    settings.refuse_open_host()
    if settings.nats_url is None:
        raise SettingsError(
            "gateway needs --nats-url (or IMAGEGEN_NATS_URL); 'imagegen up' starts a NATS server itself"
        )
    from bridge.api.app import run_gateway  # Late: most commands do not need what it imports.

    logs.configure(settings)
    tracing.configure("gateway")
    return _serve(run_gateway(settings, settings.nats_url))


def worker_command(args: argparse.Namespace) -> int:
    """`imagegen worker`"""
    settings = settings_of(args)
    if settings.nats_url is None or settings.comfyui_url is None:
        raise SettingsError("worker needs --nats-url and --comfyui-url; 'imagegen up' starts both itself")
    from bridge.worker.worker import run_worker

    logs.configure(settings)
    tracing.configure("worker")
    return _serve(run_worker(settings, settings.nats_url, settings.comfyui_url))


def _serve(service: Coroutine[Any, Any, None]) -> int:
    """Run until SIGINT or SIGTERM, then let the service close its connections."""

    async def until_signalled() -> None:
        task = asyncio.ensure_future(service)
        beating = asyncio.ensure_future(beat())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        finally:
            beating.cancel()

    # Not uvloop: a write to a lost connection raises RuntimeError there, which nats-py does not expect.
    asyncio.run(until_signalled())
    return 0
