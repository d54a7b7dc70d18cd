"""The shipped graphs in comfy-cli, which many use in place of the editor: it converts each, and runs each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from bridge.modes.library import SHIPPED_WORKFLOWS
from tests.pack.comfy_server import ComfyServer
from tests.tiny_models import tiny_motion_adapter

GRAPHS = sorted(path.stem for path in SHIPPED_WORKFLOWS.glob("*.json"))
EACH = """
import runpy, sys
port, options, *files = sys.argv[1:]
for file in files:
    sys.argv = ['comfy', '--skip-prompt', 'run', '--port', port, *options.split(), '--workflow', file]
    try:
        runpy.run_module('comfy_cli', run_name='__main__')
    except SystemExit:
        pass  # The last line that it printed says how it went.
"""
"""comfy-cli run for each of several files: to start it takes two seconds."""
SMALL = {"width": 64, "height": 64}
LEAST: dict[str, dict[str, Any]] = {
    "NeuroLuxLoadModel": {"model": "tiny-flux-dev"},
    "NeuroLuxLoadImage": {"image": "comfy-cli.png"},
    "NeuroLuxEmptyLatent": SMALL,
    "NeuroLuxEncodeImage": SMALL,
    "NeuroLuxImageToEdit": SMALL,
    "NeuroLuxExtendImage": {"left": 16, "right": 16},
    "NeuroLuxSample": {"steps": 2},
    "NeuroLuxSampleVideo": {"steps": 1, "frames": 2},
    "NeuroLuxApplyMotion": {"motion": "comfy-cli-motion"},
    "NeuroLuxApplyLora": {"lora": "flux-a.safetensors"},
    "NeuroLuxApplyControlNet": {"controlnet": "tiny-flux-union"},
    "NeuroLuxDepthMap": {"preprocess": False},
    "NeuroLuxPoseSkeleton": {"preprocess": False},
    "NeuroLuxUpscaleImage": {"upscaler": "lanczos"},
    "NeuroLuxRefineInTiles": {"steps": 1, "tile": 64, "overlap": 16},
    "NeuroLuxGenerateBatch": {**SMALL, "steps": 1},
    "NeuroLuxGenerateGrid": {**SMALL, "y_values": "1"},
    "NeuroLuxTrainingImages": {"source": "comfy-cli.zip"},
    "NeuroLuxTrainLora": {"steps": 1, "rank": 4, "resolution": 64, "samples": 0},
}
"""What each node is set to, so that a run is short and needs no download."""
MODELS = {"edit": "tiny-flux2-klein", "video": "tiny-sd15"}


def comfy_run(server: ComfyServer, options: str, files: Sequence[Path], home: Path) -> list[dict[str, Any]]:
    """`comfy run` for each file; what it printed at the end of each."""
    command = [sys.executable, "-c", EACH, str(urlsplit(server.url).port), options, *map(str, files)]
    environment = {**os.environ, "DO_NOT_TRACK": "1", "HOME": str(home)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False, cwd=home)
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    envelopes = [line for line in found if line.get("type") == "envelope"]
    assert len(envelopes) == len(files), run.stdout[-3000:] + run.stderr[-3000:]
    return envelopes


def test_comfy_cli_makes_of_each_graph_what_the_editor_makes(comfyui: ComfyServer, tmp_path: Path) -> None:
    files = [SHIPPED_WORKFLOWS / f"{name}.json" for name in GRAPHS]
    for name, answer in zip(GRAPHS, comfy_run(comfyui, "--print-prompt", files, tmp_path), strict=True):
        assert answer["ok"], answer
        editors = json.loads((SHIPPED_WORKFLOWS / "api" / f"{name}.json").read_text())
        assert answer["data"]["prompt"] == editors, name


@pytest.fixture
def runnable(base_directory: Path, adapter_files: dict[str, Path], tmp_path: Path) -> list[Path]:
    """The graphs with tiny models and small images."""
    (base_directory / "input").mkdir(exist_ok=True)
    picture = base_directory / "input" / "comfy-cli.png"
    Image.new("RGBA", (64, 64), (200, 40, 40, 128)).save(picture)
    with zipfile.ZipFile(picture.with_suffix(".zip"), "w") as archive:
        archive.write(picture, "one.png")
    motion = base_directory / "models" / "animatediff_models" / "comfy-cli-motion"
    tiny_motion_adapter(seed=9).save_pretrained(motion)
    files = []
    for name in GRAPHS:
        graph = json.loads((SHIPPED_WORKFLOWS / "api" / f"{name}.json").read_text())
        for node in graph.values():
            node["inputs"] |= LEAST.get(node["class_type"], {})
            if node["class_type"] == "NeuroLuxLoadModel" and name in MODELS:
                node["inputs"]["model"] = MODELS[name]
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(graph))
    return files


def test_comfy_cli_runs_each_graph(comfyui: ComfyServer, runnable: list[Path], tmp_path: Path) -> None:
    answers = comfy_run(comfyui, "--wait", runnable, tmp_path)
    failed = {file.stem: answer for file, answer in zip(runnable, answers, strict=True) if not answer["ok"]}
    assert not failed, json.dumps(failed, indent=1)
    for file, answer in zip(runnable, answers, strict=True):
        assert answer["data"]["outputs"], file.stem
