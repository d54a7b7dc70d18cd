"""The command that plans where a model would live in memory, for any GPU. It needs no service, weights or such a GPU.

The planner is the node pack's, which the bridge does not import: it runs as a process of its own, without ComfyUI.
Of a user's own models it reads the headers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Literal

from bridge.contract import BridgeError
from bridge.service.installer import PACK, find_installation, model_folders
from bridge.settings import Settings
from bridge.terminal import show

MODULE = "neurolux.library.plan_command"
DRY_MODULE = "neurolux.dry_run.command"
DRY_OPTIONS = ("model", "vram", "card", "ram", "size", "precision", "offload")
DRY_FLAGS = {
    "every-mode": "with --dry-run --all-cards: every offload mode, not only the one that is chosen",
    "every-task": "with --dry-run --all-cards: image to image, ControlNets and videos too",
}
GPU_FACTS = "compute_cap,pcie.link.gen.max,pcie.link.width.max,name"
WRONG = 2
"""The exit code of the planner for arguments that it cannot use."""
OPTIONS = {
    "model": (
        "NAME",
        "a name that 'imagegen models' lists, a diffusers folder, or a weight file in the models folder; or a path",
    ),
    "vram": ("SIZE", "memory of the GPU, such as 8GB, 7.5GB or 8GiB; 0 for a CPU (this machine's)"),
    "card": ("NAME", "a GPU by its name, such as 'RTX 3060': its memory, number formats and speed"),
    "ram": ("SIZE", "RAM of the machine (the free RAM of this one)"),
    "disk": ("RATE", "bytes a second that the disk with the weights delivers, such as 500MB (measured where they are)"),
    "size": ("WxH", "pixels, such as 1024 or 1024x768 (the model's)"),
    "steps": ("N", "denoising steps (the model's)"),
    "count": ("N", "how many images (1)"),
    "frames": ("N", "frames of a video, with a motion adapter (an image)"),
    "precision": ("TYPE", "auto, bf16, fp16, fp32, fp8, int8, nf4 or as-is (auto)"),
    "offload": ("MODE", "auto, none, model, stream, sequential or disk (auto)"),
    "controlnet": ("NAME", "a ControlNet to include: a file in models/controlnet, or its size, such as 2.5GB"),
    "lora": ("NAME", "LoRAs to include: files in models/loras, or their sizes, separated by commas"),
    "bf16": ("yes|no", "whether the GPU computes in bf16; NVIDIA GPUs do since the RTX 30 (yes, or this machine's)"),
}


def add_parsers(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of this module."""
    plan = subparsers.add_parser(
        "plan",
        help="where a model would live in memory, on this machine or any GPU",
        description="What of a model would be where, in which type, what that takes and what it costs. "
        "Nothing is loaded, and no service needs to run. Exit code 1: it does not fit.",
        epilog="Example: imagegen plan --model flux-dev --vram 8GB --ram 32GB --size 1024",
    )
    for name, (metavar, words) in OPTIONS.items():
        plan.add_argument(f"--{name}", metavar=metavar, help=words)
    plan.add_argument("--all-cards", action="store_true", help="a line for each common GPU, for all models or --model")
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.add_argument(
        "--dry-run",
        action="store_true",
        help="execute the plan on a simulated GPU (some 20 s), and print what was counted; with --vram and --ram",
    )
    plan.add_argument(
        "--sweep", metavar="N", type=int,
        help="with --dry-run: let memory run out at each N-th allocation of an image (1 takes hours)",
    )  # fmt: skip
    for name, words in DRY_FLAGS.items():
        plan.add_argument(f"--{name}", action="store_true", help=words)
    plan.set_defaults(run=plan_command)


def nvidia_gpu(memory: Literal["free", "total"] = "free") -> str:
    """MiB of memory, compute capability, generation and lanes of PCIe and name of this machine's first NVIDIA GPU;
    empty where there is none."""
    query = ("nvidia-smi", f"--query-gpu=memory.{memory},{GPU_FACTS}", "--format=csv,noheader,nounits")
    try:
        asked = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout.partition("\n")[0]


def plan_command(args: argparse.Namespace) -> int:
    """`imagegen plan`"""
    if not args.model and not args.all_cards:
        raise BridgeError("say which model: imagegen plan --model flux-dev, or --all-cards for every model")
    values = {name: getattr(args, name) for name in OPTIONS}
    settings = Settings.from_environment()
    if args.dry_run:
        environment = {**os.environ, "PYTHONPATH": str(PACK.parent)}
        return subprocess.run(dry_run(values, args, settings), env=environment).returncode
    if args.every_mode or args.every_task:
        raise BridgeError("--every-mode and --every-task go with --dry-run --all-cards")
    if args.sweep is not None:
        raise BridgeError("--sweep goes with --dry-run")
    return run_planner(MODULE, settings, values, {"all-cards": args.all_cards, "json": args.json}, nvidia_gpu())


def run_planner(
    module: str, settings: Settings, values: Mapping[str, str | None], flags: Mapping[str, bool], gpu: str
) -> int:
    """Run a module of the pack without ComfyUI, print its output and return its exit code. Raises BridgeError."""
    command = [sys.executable, "-m", module]
    command += [f"--models={folder}" for folder in model_folders(settings)]
    command += [f"--{name}={value}" for name, value in values.items() if value is not None]
    command += [f"--{name}" for name, wanted in flags.items() if wanted]
    environment = {**os.environ, "PYTHONPATH": str(PACK.parent)}
    planner = subprocess.run([*command, f"--gpu={gpu}"], env=environment, capture_output=True, text=True)
    if planner.returncode == WRONG:
        raise BridgeError(planner.stderr.strip())
    if planner.stderr:
        raise BridgeError(f"the planner failed: {planner.stderr.strip().splitlines()[-1]}")
    show(planner.stdout, end="")
    return planner.returncode


def dry_run(values: Mapping[str, str | None], args: argparse.Namespace, settings: Settings) -> list[str]:
    """The command that executes the plan of ``values``, or with ``--all-cards`` those of the usual GPUs."""
    given = {name: value for name, value in values.items() if value is not None}
    taken = ("model", "offload") if args.all_cards else DRY_OPTIONS
    if (args.every_mode or args.every_task) and not args.all_cards:
        raise BridgeError("--every-mode and --every-task go with --all-cards")
    if args.sweep is not None and args.all_cards:
        raise BridgeError("--sweep goes with --model, --vram (or --card) and --ram, not with --all-cards")
    for name in given:
        if name not in taken:
            raise BridgeError(f"--dry-run takes no --{name} here; it takes --{', --'.join(taken)}")
    command = [sys.executable, "-m", DRY_MODULE, f"--comfyui={find_installation(settings, lambda text: None).root}"]
    command += [f"--{name}={value}" for name, value in given.items()]
    if args.sweep is not None:
        command.append(f"--sweep={args.sweep}")
    return command + [flag for flag, wanted in _flags(args) if wanted]


def _flags(args: argparse.Namespace) -> list[tuple[str, bool]]:
    """The dry run's own flags, and whether they are wanted."""
    return [
        ("--matrix", args.all_cards), ("--json", args.json), ("--every-mode", args.every_mode),
        ("--every-task", args.every_task),
    ]  # fmt: skip
