"""Every benchmark runs through, at its smallest, started as its user starts it. Its figures mean nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).parents[2]
TIMEOUT_S = 240


def output_of(benchmark: str, *options: str) -> str:
    """What a benchmark prints; it must end well."""
    command = [sys.executable, "-m", benchmark, *options]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def first_cells(table: str) -> list[str]:
    """The first cell of each row of a Markdown table."""
    return [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]


def test_the_bridge_beside_raw_comfyui() -> None:
    printed = output_of("benchmarks", "--rounds=2", "--jobs=2", "--repeat=1", "--queued=2", "--no-peer")
    rows = first_cells(printed)
    assert rows[1:6] == [
        "raw, a websocket a job", "raw, one websocket", "bridge by REST", "bridge by NATS", "bridge by events",
    ]  # fmt: skip
    assert "2 jobs accepted" in printed
    assert rows[-1] == "2"  # both have ended


def test_the_nodes_beside_diffusers(tmp_path: Path) -> None:
    """One model of each purpose: an image from a prompt, a masked part filled in, an image edited."""
    names = ["tiny-sdxl", "tiny-flux-fill", "tiny-flux-kontext"]
    file = tmp_path / "rows.json"
    printed = output_of("benchmarks.nodes", "--images=1", "--warm-up=0", "--json", str(file), "--models", *names)
    rows = json.loads(file.read_text())
    assert [row["model"] for row in rows] == names
    assert all(row["ratio"] > 0 for row in rows)
    assert all(name in printed for name in names)


def test_the_overlay_beside_a_bare_window() -> None:
    printed = output_of("benchmarks.overlay", "--rounds=1")
    assert first_cells(printed)[1:] == ["`gapplication action`", "Alt+Space"]
    assert "from key to pixels" in printed


def test_the_soak() -> None:
    printed = output_of("benchmarks.soak", "--stand-in", "--jobs=4", "--kills=1")
    assert "ended: 4 done" in printed
    assert "lost 0, doubled 0, untrue states 0" in printed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_offload_modes_on_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    output_of("benchmarks.gpu", "--models", "sdxl-lightning", "--modes", "stream", "--caps", "12", "--json", str(file))
    rows = json.loads(file.read_text())
    assert {row["cap_gb"] for row in rows} == {None, 12.0}
    assert [row for row in rows if not row["failure"] and row["seconds"] > 0]
