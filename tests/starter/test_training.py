"""The training commands in the order of ``training/README.md``, from icons to a pipeline that makes images."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from training.fetch import PACKAGES
from training.paths import REPOSITORY
from training.vocabulary import SUBJECTS

TRAIN = ("training.train_transformer", "--batch", "4", "--device", "cpu")


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"STARTER_WORK": str(folder), "OMP_NUM_THREADS": "1"}


ONE_PROCESS = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""``python -m`` for several commands; to import PyTorch for each of them would take longer than they do."""


def run(folder: Path, *commands: tuple[str, ...], interrupt_at: str | None = None) -> str:
    """Everything that ``python -m`` prints for the commands, one after the other.

    As soon as it has printed ``interrupt_at``, the command in hand is stopped as a process manager does.
    """
    with subprocess.Popen(
        [sys.executable, "-c", ONE_PROCESS, json.dumps(commands)],
        cwd=REPOSITORY,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        assert running.stdout
        shown = ""
        try:
            while interrupt_at and not re.search(interrupt_at, shown[-80:]):
                letter = running.stdout.read(1)
                assert letter, shown
                shown += letter
            if interrupt_at:
                running.send_signal(signal.SIGTERM)
            shown += running.communicate(timeout=240)[0]
        finally:
            running.kill()
    assert running.returncode == 0, shown
    return shown


def state(folder: Path) -> dict:
    return torch.load(folder / "transformer.pt", weights_only=True)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with both icon sets, as ``training.fetch`` leaves them: a disc of its own colour for each name."""
    folder = tmp_path_factory.mktemp("starter-work")
    icons = {
        subject.icon: {
            "body": f'<circle cx="8" cy="8" r="6" fill="#{zlib.crc32(subject.icon.encode()) & 0xFFFFFF:06x}"/>'
        }
        for subject in SUBJECTS
    }
    for package in PACKAGES:
        path = folder / "packages" / package.style / "icons.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"icons": icons, "width": 16, "height": 16}))
    return folder


@pytest.mark.timeout(600)
def test_the_commands_lead_from_icons_to_a_pipeline(work: Path, tmp_path: Path) -> None:
    decoder = ("training.train_vae", "--steps", "2", "--batch", "2", "--device", "cpu")
    encode = ("training.encode", "--count", "1")
    # An interrupt in the middle saves; the same command goes on from there, and keeps its weights before the fall.
    endless = (*TRAIN, "--minutes", "60", "--sized", "1")
    told = run(work, ("training.render",), decoder, encode, endless, interrupt_at=r"transformer: [1-9]\d*it")
    assert f"{2 * len(SUBJECTS) + 5} sprites" in told
    assert "decoder: 100%" in told
    assert "encode: 100%" in told
    latents = np.load(work / "bank-composed" / "11-0000000.npy")
    assert latents.shape == (1000, 16, 16, 16)
    assert np.isfinite(latents).all()

    first = state(work)
    assert first["step"] >= 1

    minutes = str(first["seconds"] / 60 + 0.05)
    export = ("training.export", "--to", str(tmp_path / "starter"))
    told = run(work, (*TRAIN, "--minutes", minutes, "--sized", "0"), export)
    assert f"transformer: {first['step']}it" in told
    second = state(work)
    assert second["step"] > first["step"]
    assert second["seconds"] > first["seconds"]
    changed = [name for name, weight in second["model"].items() if not torch.equal(weight, first["model"][name])]
    assert len(changed) > 0.9 * len(second["model"])
    assert (work / "transformer_flat.pt").is_file()

    assert f"'steps': {second['step']}" in told
    pipeline = FluxPipeline.from_pretrained(tmp_path / "starter")
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "red apple, blue background", num_inference_steps=2, guidance_scale=0.0, height=128, width=160, output_type="np"
    ).images[0]  # pyright: ignore[reportAttributeAccessIssue]
    assert image.shape == (128, 160, 3)
    assert np.isfinite(image).all()
