"""Facts about the machine and the installation: versions, devices, memory, disk, ports, models."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bridge import __version__
from bridge.disk import free_bytes, size
from bridge.service.advisories import known_of
from bridge.service.checks import check_port
from bridge.service.device import find_device
from bridge.service.doctor.findings import Report
from bridge.service.errors import ServiceError
from bridge.service.installer import (
    PINNED_VERSION,
    Installation,
    InstallError,
    comfy_cli_workspaces,
    existing_installation,
    model_folders,
)
from bridge.service.nats import nats_server_program
from bridge.service.status import Status
from bridge.settings import Settings

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "comfyui-frontend-package", "nats-py",
            "aiohttp", "pydantic")  # fmt: skip
ASK_VERSIONS = """
import importlib.metadata, json, platform, sys
found = {"Python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = "not installed"
print(json.dumps(found))
"""
TIMEOUT_S = 30
WEIGHTS = (".safetensors", ".gguf", ".ckpt", ".sft", ".pt")


def gather(report: Report, settings: Settings, status: Status) -> None:
    """Write down everything that is no judgement."""
    try:
        installation = installed(settings)
    except OSError:
        installation = None  # The checks say which folder cannot be read.
    sections: dict[str, Callable[[], dict[str, str]]] = {
        "versions": lambda: _versions(report, installation),
        "devices": lambda: _devices(report, installation),
        "space": lambda: _space(settings),
        "service": lambda: _service(report, settings, status),
        "models": lambda: _models(settings),
    }
    for title, section in sections.items():
        try:
            report.facts[title] = section()
        except OSError as error:
            report.facts[title] = {"unknown": f"{error.filename or title} cannot be read ({error.strerror})"}


def installed(settings: Settings) -> Installation | None:
    """The ComfyUI that the service would start; None if it would download one first."""
    pinned = settings.state_dir / f"comfyui-{PINNED_VERSION}"
    folders = [settings.comfyui_dir] if settings.comfyui_dir else [*comfy_cli_workspaces(settings), pinned]
    for folder in folders:
        try:
            return existing_installation(folder, "pinned" if folder == pinned else "existing")
        except InstallError:
            continue
    return None


def _versions(report: Report, installation: Installation | None) -> dict[str, str]:
    facts = {"imagegen": __version__, "system": platform.platform()}
    python = installation.python if installation else Path(sys.executable)
    try:
        asked = _run(str(python), "-c", ASK_VERSIONS, *PACKAGES)
        facts |= json.loads(asked)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        report.problem(f"the Python of ComfyUI, {python}, does not run ({error})", "run make setup again")
    facts["Python"] = f"{facts.get('Python', '?')} ({python})"
    if installation is None:
        facts["ComfyUI"] = "none yet (imagegen setup fetches it)"
    else:
        facts["ComfyUI"] = f"{installation.version}, {installation.origin} ({installation.root})"
        for advisory in known_of(installation.version):
            report.note(str(advisory))
    try:
        facts["nats-server"] = _run(nats_server_program(), "--version").strip().removeprefix("nats-server: ")
    except (ServiceError, OSError, subprocess.SubprocessError) as error:
        report.problem("nats-server does not run", str(error))
    return facts


def _devices(report: Report, installation: Installation | None) -> dict[str, str]:
    device = find_device(installation.python if installation else Path(sys.executable))
    facts = {"ComfyUI uses": device.kind}
    if device.note:
        report.note(device.note)
    if program := shutil.which("nvidia-smi"):
        query = "name,driver_version,memory.total,memory.free"
        try:
            listed = _run(program, f"--query-gpu={query}", "--format=csv,noheader")
            facts |= {f"GPU {number}": line for number, line in enumerate(listed.strip().splitlines())}
        except (OSError, subprocess.SubprocessError) as error:
            report.note(f"nvidia-smi fails: {error}")
    facts["CPU"] = f"{os.cpu_count()} cores, {platform.machine()}"
    return facts


def _space(settings: Settings) -> dict[str, str]:
    facts: dict[str, str] = {}
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        memory = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        facts["RAM"] = f"{size(memory['MemAvailable'])} free of {size(memory['MemTotal'])}"
        facts["swap"] = f"{size(memory['SwapFree'])} free of {size(memory['SwapTotal'])}"
    except (OSError, KeyError, ValueError):
        facts["RAM"] = "unknown"
    downloads = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    for name, folder in (("state folder", settings.state_dir), ("downloads", downloads)):
        free = free_bytes(folder)
        facts[name] = f"{'unknown' if free is None else size(free)} free ({folder})"
    return facts


def _service(report: Report, settings: Settings, status: Status) -> dict[str, str]:
    facts = {"state": "ready" if status.ready else status.message}
    if status.running:
        facts |= {"REST": status.url or "-", "ComfyUI": status.comfyui_url or "-", "NATS": status.nats_url or "-"}
        facts["processes"] = ", ".join(f"{name} {pid}" for name, pid in status.pids.items())
        if status.url and not status.ready:
            report.problem("the service is not ready", status.message)
        return facts
    try:
        check_port(settings.host, settings.port)
        facts["port"] = f"{settings.port} on {settings.host} is free"
    except ServiceError as error:
        facts["port"] = f"{settings.port} on {settings.host} is in use"
        report.problem("the service cannot start", str(error))
    return facts


def _models(settings: Settings) -> dict[str, str]:
    facts: dict[str, str] = {}
    for folder in model_folders(settings):
        files = [path for path in folder.rglob("*") if path.suffix in WEIGHTS and path.is_file()]
        whole = {path.parent.name for path in folder.glob("diffusers/*/model_index.json")}
        single = sorted(path.name for path in files if "diffusers" not in path.relative_to(folder).parts[:1])
        listed = [*sorted(whole), *single]
        shown = ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
        total = sum(path.stat().st_size for path in files)
        facts[str(folder)] = f"{shown or 'none of the user'}; {size(total)}"
    return facts


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout
