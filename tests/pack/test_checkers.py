"""What third-party checkers say of the pack, as a careful user would run them before installing it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.modes.library import SHIPPED_WORKFLOWS
from tests.pack.comfy_server import ComfyServer, comfyui_dir

PACK = Path(__file__).parents[2] / "custom_nodes" / "neurolux"


@dataclass(frozen=True)
class Harmless:
    """A finding of nodesafe that is none: its category, the lines that it is about, and why they are harmless."""

    category: str
    line: str
    reason: str


HARMLESS = [
    Harmless("code_execution", r"\bre\.compile\(", "compiles a regular expression; the scanner looks for the letters"),
    Harmless("code_execution", r"\.eval\(\)", "torch.nn.Module.eval, not the built-in, which ruff forbids"),
    Harmless("obfuscation_chains", r"[a-z_]ord\(", "the end of `record(` and the like"),
    Harmless("network_call", r"socket\.create_connection", "asks whether Hugging Face answers, before a download"),
    Harmless("dynamic_attribute_access", r"[gs]etattr\(", "names from the pack's own tables of families and settings"),
    Harmless("code_obfuscation_high_entropy", r"", "docstrings and messages in English, and regular expressions"),
    Harmless("code_obfuscation_suspicious_ident", r"\b_\b", "the usual name of a value that is not used"),
]


def test_a_scanner_for_malicious_nodes_finds_nothing_that_is_not_explained() -> None:
    command = [sys.executable, "-m", "nodesafe.cli", "scan", str(PACK), "--format", "json", "--fail-on", "none"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    findings = json.loads(run.stdout)["findings"]
    unused = list(HARMLESS)
    unexplained = []
    for finding in findings:
        line = (PACK / finding["file"]).read_text().splitlines()[finding["line"] - 1]
        explained = [one for one in HARMLESS if one.category == finding["category"] and re.search(one.line, line)]
        unused = [one for one in unused if one not in explained]
        if not explained:
            unexplained.append(f"{finding['file']}:{finding['line']}: {finding['category']}: {line.strip()}")
    assert unexplained == []
    assert unused == [], "delete what explains nothing"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of comfy-import-guard: ComfyUI's sources as a git repository, without its history."""
    cache = tmp_path_factory.mktemp("guard")
    copy = cache / "ComfyUI"
    sources = [path for path in comfyui_dir().rglob("*.py") if ".venv" not in path.parts]
    for path in sources:
        target = copy / path.relative_to(comfyui_dir())
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    author = ["-c", "user.name=x", "-c", "user.email=x"]
    for arguments in (["init", "--quiet"], ["add", "."], [*author, "commit", "-qm", "x"]):
        subprocess.run(["git", *arguments], cwd=copy, env=environment, check=True)
    return cache


def test_every_name_of_comfyui_that_the_pack_uses_exists_and_every_call_fits(repository: Path) -> None:
    packs = repository / "install" / "custom_nodes"
    packs.mkdir(parents=True)
    (packs / "neurolux").symlink_to(PACK)
    command = [sys.executable, "-m", "comfy_import_guard.cli", "--offline", "--cache-dir", str(repository), "check"]
    command += ["--comfy-dir", str(packs.parent), "--target", "HEAD", "--strict", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout)["packs"][0]["verdict"] == "SAFE"


def test_every_shipped_graph_fits_the_nodes_of_this_comfyui(comfyui: ComfyServer) -> None:
    graphs = sorted(str(SHIPPED_WORKFLOWS / "api" / path.name) for path in SHIPPED_WORKFLOWS.glob("*.json"))
    command = [sys.executable, "-m", "comfy_lint.cli", "--strict", "--server", comfyui.url, *graphs]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, len(graphs) > 10) == (0, True), run.stdout + run.stderr
