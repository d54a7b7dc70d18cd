"""The commands that use a running service: generate, models, load."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from bridge.client import DEFAULT_URL, ClientError, ImageGenClient, paths_for
from bridge.commands import plan
from bridge.commands.progress_bar import ProgressBar
from bridge.commands.tables import print_table
from bridge.contract import (
    DEFAULT_MODE,
    IMAGE_FORMATS,
    PRIORITIES,
    AdapterInfo,
    BridgeError,
    ErrorBody,
    ImageGenResponse,
    JobStatus,
    ModelInfo,
    size_text,
)
from bridge.service.runtime import running_service
from bridge.settings import Settings
from bridge.terminal import show

RECOMMEND = "neurolux.library.recommend_command"
MACHINE_OPTIONS = ("card", "vram", "ram")
SIZE = re.compile(r"^(\d+)(?:x(\d+))?$")


def add_parsers(subparsers: argparse._SubParsersAction) -> None:
    """Add the parsers of this module."""
    generate = subparsers.add_parser(
        "generate",
        help="generate an image from a prompt",
        description="Generate an image from a prompt and save it. Options that are left out take the model's default.",
        epilog='Example: imagegen generate "a red fox in the snow" --model flux-schnell --size 1024x768 --n 2',
    )
    generate.add_argument("prompt", nargs="?", help="what the image shows; some modes need none")
    generate.add_argument("--model", help="a name that 'imagegen models' lists")
    generate.add_argument("--negative", metavar="TEXT", help="what it must not show, for models that support it")
    generate.add_argument("--size", type=size, metavar="WxH", help="pixels, such as 1024 or 1024x768")
    generate.add_argument("--steps", type=int, help="denoising steps")
    generate.add_argument("--guidance", type=float, help="how closely to follow the prompt")
    generate.add_argument("--seed", type=int, help="the same seed gives the same image (random)")
    generate.add_argument("--n", type=int, help="how many images; image i has seed + i")
    generate.add_argument("--format", choices=list(IMAGE_FORMATS), help="encoding (png, or what --out ends in)")
    generate.add_argument("--priority", choices=PRIORITIES, help="which waiting jobs are taken first (normal)")
    generate.add_argument("--mode", default=DEFAULT_MODE, help="the saved graph to run (%(default)s)")
    generate.add_argument(
        "--set",
        action="append",
        default=[],
        type=assignment,
        metavar="NAME=VALUE",
        help="another parameter of the mode ('imagegen modes NAME' lists them); @FILE sends a file",
    )
    generate.add_argument(
        "--watch",
        action="store_true",
        help="queue the job and follow it, even if the service restarts; Ctrl-C cancels it",
    )
    generate.add_argument("--out", type=Path, metavar="PATH", help="a file or a folder (the current folder)")
    generate.add_argument("--quiet", action="store_true", help="no progress bar; print only the paths of the images")
    generate.set_defaults(run=generate_command)

    models = subparsers.add_parser(
        "models",
        help="list the models, and whether their weights are on this machine",
        description="List the models of the service; or with --recommend say which one suits this machine or "
        "another, and why, without a service. It downloads nothing.",
        epilog='Example: imagegen models --recommend --card "RTX 3060" --ram 32GB',
    )
    models.add_argument("--json", action="store_true", help="print JSON")
    models.add_argument("--recommend", action="store_true", help="the best model by what fits and by licence, and why")
    for name in MACHINE_OPTIONS:
        metavar, words = plan.OPTIONS[name]
        models.add_argument(f"--{name}", metavar=metavar, help=f"with --recommend: {words}")
    models.set_defaults(run=models_command)

    load = subparsers.add_parser("load", help="load a model now, so that the first image does not wait for it")
    load.add_argument("model", help="a name that 'imagegen models' lists")
    load.set_defaults(run=load_command)

    for parser in (generate, models, load):
        add_connection(parser)


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select the service."""
    parser.add_argument("--url", help=f"URL of the service (the one that runs on this machine, else {DEFAULT_URL})")
    parser.add_argument("--token", help="token of the service (IMAGEGEN_TOKEN)")
    parser.add_argument("--state-dir", type=Path, help="state folder of the running service")


def connect(args: argparse.Namespace) -> ImageGenClient:
    """A client of the service that the arguments select, or that runs on this machine."""
    settings = Settings.from_environment(state_dir=args.state_dir)
    url = args.url or os.environ.get("IMAGEGEN_URL")
    if not url:
        service = running_service(settings)
        url = service.url if service else settings.url
    return ImageGenClient(url, token=args.token or settings.own_token)


def generate_command(args: argparse.Namespace) -> int:
    """`imagegen generate`"""
    width, height = args.size or (None, None)
    parameters: dict[str, Any] = {
        "model": args.model,
        "negative_prompt": args.negative,
        "width": width,
        "height": height,
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance,
        "seed": args.seed,
        "num_images": args.n,
        "output_format": args.format,
        "priority": args.priority,
        "mode": args.mode,
    }
    with connect(args) as client, ProgressBar(hidden=args.quiet) as bar:
        if args.set:
            parameters |= _as_meant(dict(args.set), client.mode(args.mode)["properties"])
        if args.format is None and (meant := _format_of(args.out)) and _takes(client, args.mode, "output_format"):
            parameters["output_format"] = meant
        if args.watch:
            answer, images = watch(client, args.prompt, parameters, bar)
        else:
            on_event = None if args.quiet else bar.show
            mode = parameters.pop("mode")
            answer = client.run_mode(mode, on_event=on_event, prompt=args.prompt, **parameters)
            images = client.images(answer)
    for warning in answer.warnings:
        show(f"imagegen: note: {warning}", file=sys.stderr)
    for path, data in zip(paths_for(answer, args.out), images, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        show(path)
    if not args.quiet:
        show(_summary(answer, len(images)), file=sys.stderr)
    return 0


def _as_meant(values: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    """The parameters, with numbers and files turned into texts where the mode takes a text: `prompts=@prompts.txt`."""
    meant = dict(values)
    for name, value in values.items():
        schema = properties.get(name, {})
        kinds = schema.get("type", ())
        if "string" not in ([kinds] if isinstance(kinds, str) else kinds) or "format" in schema:
            continue
        if isinstance(value, Path):
            meant[name] = value.read_text(encoding="utf-8")
        elif not isinstance(value, str):
            meant[name] = json.dumps(value)
    return meant


def _takes(client: ImageGenClient, mode: str, parameter: str) -> bool:
    return parameter in client.mode(mode)["properties"]


def watch(
    client: ImageGenClient, prompt: str | None, parameters: dict[str, Any], bar: ProgressBar
) -> tuple[ImageGenResponse, list[bytes]]:
    """Queue a job and follow it to its end; an interrupt cancels it. Raises ClientError."""
    state = client.submit(prompt, **parameters)
    bar.say(f"job {state.job_id}")
    try:
        for event in client.events(state.job_id):
            bar.show(event)
            state = event.state or state
        if state.status is not JobStatus.DONE:
            raise ClientError(0, state.error or ErrorBody(code=state.status, message=f"the job is {state.status}"))
        return ImageGenResponse.of(state), client.job_images(state.job_id)
    except KeyboardInterrupt:
        show(f"imagegen: {client.cancel(state.job_id).message}", file=sys.stderr)
        raise


def models_command(args: argparse.Namespace) -> int:
    """`imagegen models`"""
    machine = {name: getattr(args, name) for name in MACHINE_OPTIONS}
    if args.recommend:
        settings = Settings.from_environment(state_dir=args.state_dir)
        return plan.run_planner(RECOMMEND, settings, machine, {"json": args.json}, plan.nvidia_gpu("total"))
    for name, value in machine.items():
        if value is not None:
            raise BridgeError(f"--{name} goes with --recommend: imagegen models --recommend --{name} {value!r}")
    with connect(args) as client:
        info = client.model_info()
    if args.json:
        show(info.model_dump_json(indent=2))
        return 0
    rows = [("MODEL", "STATUS", "DOWNLOAD", "LICENCE", "TITLE")]
    rows += [_model_row(model, model.name == info.default_model) for model in info.models]
    print_table(rows)
    show(f"\n* default. Device: {info.device_name} ({info.device}), {info.dtype}, offload {info.offload}.")
    if info.better_model is not None:
        show(f"{info.better_model.name} suits this machine better: imagegen models --recommend says why.")
    for model in info.models:
        for line in _file_lines(model):
            show(line)
    for line in _adapter_lines(info.adapters):
        show(line)
    return 0


def load_command(args: argparse.Namespace) -> int:
    """`imagegen load`"""
    with connect(args) as client:
        loaded = client.load_model(args.model)
    show(f"{loaded.model} loaded in {loaded.load_time_ms / 1000:.1f} s on {loaded.device} as {loaded.dtype}")
    return 0


def assignment(text: str) -> tuple[str, Any]:
    """The name and value in `strength=0.5`, `title=a word` or `image=@photo.jpg`."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    if value.startswith("@"):
        path = Path(value[1:]).expanduser()
        if not path.is_file():
            raise argparse.ArgumentTypeError(f"there is no file {str(path)!r} for {name}")
        return name, path
    try:
        number = json.loads(value)
    except ValueError:
        return name, value
    return name, number if isinstance(number, int | float) else value  # true and false are ints to Python


def size(text: str) -> tuple[int, int]:
    """The width and height in `1024` or `1024x768`."""
    match = SIZE.match(text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 1024 or 1024x768")
    return int(match[1]), int(match[2] or match[1])


def _file_lines(model: ModelInfo) -> list[str]:
    """The files of a model that are here or missing, and what to do."""
    files = model.files
    if files is None:
        return [f"{model.name}: {model.reason}"] if model.reason else []
    lines = ["", f"{model.name}: {files.hint}"]
    for part in files.found:
        lines.append(f"  {part.component:<16}{part.type or '':<6}{size_text(part.bytes):>9}  {part.folder}/{part.file}")
    for part in files.missing if files.found else ():
        size = f", about {size_text(part.bytes)}" if part.bytes else ""
        lines.append(f"  {part.component:<16}missing: {part.kind} ({part.example}{size}), put it into {part.folder}")
    return lines


def _format_of(path: Path | None) -> str | None:
    suffix = path.suffix.lower().lstrip(".") if path else ""
    return {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}.get(suffix)


def _summary(answer: ImageGenResponse, count: int) -> str:
    parts = [f"{answer.width}x{answer.height}"] if answer.width else []
    parts += [f"seed {answer.seed}"] if answer.seed is not None else []
    parts += [f"{answer.num_inference_steps} steps"] if answer.num_inference_steps else []
    parts += [f"{count} files"] if count > 1 else []
    return f"{answer.model or answer.mode}: {', '.join(parts)}, {answer.generation_time_ms / 1000:.1f} s"


def _model_row(model: ModelInfo, default: bool) -> tuple[str, ...]:
    download = size_text(model.download_bytes) if model.download_bytes and model.status != "ready" else ""
    status = "loaded" if model.loaded else model.status
    return (model.name + ("*" if default else ""), status, download, model.license, model.title)


def _adapter_lines(adapters: list[AdapterInfo]) -> list[str]:
    """LoRAs, ControlNets and preprocessors: their family and size, and problems or downloads."""
    names = {"lora": "LoRA", "controlnet": "ControlNet", "preprocessor": "Preprocessor"}
    lines = [""] if adapters else []
    for adapter in adapters:
        family = f"for {adapter.family}" if adapter.family else "for an unknown family"
        about = [family] if adapter.kind != "preprocessor" else []
        about += [size_text(adapter.bytes), *([adapter.license] if adapter.license else [])]
        about += [adapter.status] if adapter.source else []
        problem = f": {adapter.problem}" if adapter.problem else ""
        lines.append(f"{names[adapter.kind]} {adapter.name}, {', '.join(about)}{problem}")
    return lines
