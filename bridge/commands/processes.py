"""The commands that are one process of the service each: worker and gateway. `imagegen up` starts both."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from bridge.settings import DEFAULT_HOST, DEFAULT_PORT, Settings, SettingsError


def add_parsers(subparsers: argparse._SubParsersAction) -> None:
    """Add the parsers of this module."""
    gateway = subparsers.add_parser(
        "gateway",
        help="only the REST and NATS doors, on a NATS server that exists",
        description="Answer requests over REST and NATS, and leave the work to the workers on the same NATS server.",
    )
    gateway.add_argument("--host", help=f"address to listen on ({DEFAULT_HOST}); a wider one needs IMAGEGEN_TOKEN")
    gateway.add_argument("--port", type=int, help=f"port to listen on ({DEFAULT_PORT})")
    gateway.set_defaults(run=gateway_command)

    worker = subparsers.add_parser(
        "worker",
        help="only a worker, for a ComfyUI that runs",
        description="Take jobs from the queue on a NATS server and run them on one ComfyUI.",
    )
    worker.add_argument("--comfyui-url", help="the ComfyUI to run jobs on, such as http://127.0.0.1:8188")
    worker.set_defaults(run=worker_command)

    for parser in (gateway, worker):
        parser.add_argument("--nats-url", help="the NATS server, such as nats://127.0.0.1:4222")
        parser.add_argument("--state-dir", type=Path, help="folder whose workflows/ holds the user's own modes")


def gateway_command(args: argparse.Namespace) -> int:
    """`imagegen gateway`"""
    settings = Settings.from_environment(
        host=args.host, port=args.port, nats_url=args.nats_url, state_dir=args.state_dir
    )
    settings.refuse_open_host()
    if settings.nats_url is None:
        raise SettingsError(
            "gateway needs --nats-url (or IMAGEGEN_NATS_URL); 'imagegen up' starts a NATS server itself"
        )
    from bridge.gateway import run_gateway  # Late: most commands need none of what it imports.

    return _serve(run_gateway(settings, settings.nats_url))


def worker_command(args: argparse.Namespace) -> int:
    """`imagegen worker`"""
    settings = Settings.from_environment(comfyui_url=args.comfyui_url, nats_url=args.nats_url, state_dir=args.state_dir)
    if settings.nats_url is None or settings.comfyui_url is None:
        raise SettingsError("worker needs --nats-url and --comfyui-url; 'imagegen up' starts both itself")
    from bridge.worker import run_worker

    return _serve(run_worker(settings, settings.nats_url, settings.comfyui_url))


def _serve(service: Coroutine[Any, Any, None]) -> int:
    """Run until SIGINT or SIGTERM, then let the service close its connections."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    async def until_signalled() -> None:
        task = asyncio.ensure_future(service)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(until_signalled())
    return 0
