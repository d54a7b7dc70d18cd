"""The state folder: whose it is, what is missing, left over, cut off or unreadable in it."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import yaml

from bridge.disk import Disks
from bridge.service.doctor.findings import Report
from bridge.service.errors import ServiceError
from bridge.service.installer import EXTRA_MODEL_PATHS, MARKER, PINNED_VERSION, model_folders
from bridge.service.nats import set_aside
from bridge.service.state_folder import loose, prepare
from bridge.settings import Settings

CODE = ("main.py", "server.py", "execution.py", "nodes.py", "folder_paths.py", "comfy/*.py", "comfy_execution/*.py")
"""Files without which ComfyUI does not start."""
OWN_FOLDERS = ("comfyui", "workflows", "nats", "logs")


def check_folders(report: Report, settings: Settings, *, running: bool) -> None:
    """Check the files of the state folder. What a running service uses is not touched."""
    root = settings.state_dir
    if not root.exists():
        report.note(f"{root} does not exist yet: imagegen setup or imagegen up creates it")
        return
    if not root.is_dir():
        report.problem(f"{root} is no folder", "remove it, or use another --state-dir")
        return
    checks = [_check_access, _check_disk, _check_left_overs, _check_comfyui, _check_texts, _check_weights]
    for check in checks:
        if running and check is _check_left_overs:
            continue
        try:
            check(report, settings)
        except OSError as error:
            report.problem(
                f"{error.filename or root} cannot be checked ({error.strerror})", "look at its access rights"
            )


def _check_access(report: Report, settings: Settings) -> None:
    root = settings.state_dir
    for folder in [root, *(root / name for name in OWN_FOLDERS), settings.models, settings.output]:
        if not folder.exists():
            if report.mendable(f"{folder} is missing"):
                settings.make_directories()
                report.repaired(f"{folder} is there again")
        elif not folder.is_dir():
            if report.mendable(f"{folder} is no folder"):
                place = set_aside(settings, folder)
                settings.make_directories()
                report.repaired(f"{folder} is a folder again; what was there is {place}")
        elif folder.stat().st_mode & 0o700 != 0o700 or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            if folder.stat().st_uid not in (os.geteuid(), 0) or not report.mendable(f"{folder} cannot be written"):
                if folder.stat().st_uid != os.geteuid():
                    report.problem(f"{folder} belongs to another user", f"sudo chown -R $USER {root}")
                continue
            folder.chmod(0o700)
            report.repaired(f"{folder} can be written again")
    if problem := loose(root):
        if report.mendable(f"{root} {problem}"):
            try:
                prepare(settings, report.repaired)
            except ServiceError as error:
                report.problem("the state folder stays as it is", str(error))
    else:
        report.ok(f"{root} is its owner's alone")
    tokens = (settings.nats_token_file, settings.comfyui_token_file)
    for private in (root / "nats.conf", *tokens, settings.runtime_file):
        if private.is_file() and (problem := loose(private)) and report.mendable(f"{private} {problem}"):
            private.chmod(0o600)
            report.repaired(f"{private} is its owner's alone")


def _check_disk(report: Report, settings: Settings) -> None:
    problem = Disks((settings.state_dir, settings.output), settings.min_free_disk_bytes).shortage()
    if problem:
        report.problem("new jobs are refused", problem)
    else:
        report.ok("the disk has space")


def _check_left_overs(report: Report, settings: Settings) -> None:
    """What a service leaves that was killed: files that only a running one has."""
    root = settings.state_dir
    of_a_service = (settings.runtime_file, settings.nats_token_file, settings.comfyui_token_file)
    stale = [path for path in of_a_service if path.exists()]
    stale += [*root.glob(".runtime-*"), *root.glob(f".comfyui-{PINNED_VERSION}-*")]
    for path in stale:
        if report.mendable(f"{path} is left over from a service or an installation that was killed"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            report.repaired(f"{path} is removed")
    for lock in (settings.lock_file, *root.glob("comfyui-*.lock")):
        if lock.is_dir() and report.mendable(f"{lock} is a folder, not a file"):
            report.repaired(f"it is now {set_aside(settings, lock)}")
    if not stale:
        report.ok("nothing is left over")


def _check_comfyui(report: Report, settings: Settings) -> None:
    root = settings.state_dir / f"comfyui-{PINNED_VERSION}"
    if not root.exists():
        return
    damage = "is not complete" if not (root / MARKER).is_file() else None
    for path in (path for pattern in CODE for path in root.glob(pattern)):
        try:
            source = path.read_bytes()
            compile(source, str(path), "exec", dont_inherit=True)
            if not source and path.name != "__init__.py":
                damage = f"has an empty file, {path.name}"
        except (SyntaxError, ValueError, OSError) as error:
            damage = f"has a damaged file, {path.name} ({type(error).__name__})"
    if not (root / "main.py").is_file():
        damage = damage or "has no main.py"
    if damage is None:
        report.ok(f"ComfyUI in {root} is whole")
    elif report.mendable(f"ComfyUI in {root} {damage}"):
        (root / MARKER).unlink(missing_ok=True)
        report.repaired(f"{root} is unpacked anew by the next imagegen setup or imagegen up")


def _check_texts(report: Report, settings: Settings) -> None:
    """Files that are read as JSON or YAML."""
    paths = settings.state_dir / EXTRA_MODEL_PATHS
    try:
        if paths.exists() and not isinstance(yaml.safe_load(paths.read_text(encoding="utf-8")), dict):
            raise ValueError("no mapping")
    except (OSError, ValueError, yaml.YAMLError):
        if report.mendable(f"{paths} is damaged"):
            place = set_aside(settings, paths)
            report.repaired(f"{paths} is written at every start; what was there is {place}")
    if settings.runtime_file.is_file():
        try:
            json.loads(settings.runtime_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            report.note(f"{settings.runtime_file} is damaged; a start writes it anew")
    bad = 0
    for graph in sorted(settings.workflows.rglob("*.json")) if settings.workflows.is_dir() else []:
        try:
            json.loads(graph.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            bad += 1
            report.problem(f"the mode {graph} cannot be read ({type(error).__name__})", "publish it again or remove it")
    if not bad:
        report.ok("every mode of the user can be read")


def _check_weights(report: Report, settings: Settings) -> None:
    cut = list(_damaged_weights(settings))
    for path, problem in cut:
        report.problem(f"{path} {problem}", "fetch it again")
    if not cut:
        report.ok("every weight file is as long as it says")
    hub = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser() / "hub"
    if partial := list(hub.glob("*/blobs/*.incomplete")):
        report.note(f"{len(partial)} downloads in {hub} are not complete; they go on when the model is used")


def _damaged_weights(settings: Settings) -> Iterator[tuple[Path, str]]:
    for folder in model_folders(settings) if settings.comfyui_base.is_dir() else []:
        for path in sorted(folder.rglob("*.safetensors")):
            if path.is_file():  # no FIFO, which would wait for a writer
                try:
                    problem = _safetensors_problem(path)
                except OSError as error:
                    problem = f"cannot be read ({error.strerror})"
                if problem:
                    yield path, problem


def _safetensors_problem(path: Path) -> str | None:
    """What is wrong with the length of a safetensors file, from its header; None if it is as long as that says."""
    have = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return f"is cut off ({have} bytes)"
        (length,) = struct.unpack("<Q", start)
        if length > min(have - 8, 100_000_000):
            return f"is cut off or no safetensors file ({have} bytes)"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
            return "has a damaged header"
    need = 8 + length + max(ends, default=0)
    return f"is cut off: {have} of {need} bytes" if have < need else None
