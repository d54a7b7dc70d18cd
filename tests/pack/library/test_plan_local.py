"""`imagegen plan` for what is on this machine: diffusers folders, single files, LoRAs and ControlNets. No service."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from neurolux.library import plan_command
from safetensors.torch import save_file

from tests.pack.comfy_server import comfyui_dir
from tests.pack.library.test_plan_command import imagegen
from tests.tiny_adapters import write_controlnets
from tests.tiny_files import bfl_flux, clip_l, ldm_vae, llama_t5, state_of, tiny_flux, write, write_gguf


@pytest.fixture(scope="module")
def models(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's models folder, below the state directory that imagegen is told of."""
    root = tmp_path_factory.mktemp("state") / "comfyui" / "models"
    (root / "diffusers").mkdir(parents=True)
    (root / "diffusers" / "my-flux").symlink_to(tiny_models["tiny-flux-dev"])
    flux = tiny_flux(comfyui_dir(), guidance=True)
    write(root / "unet" / "own.safetensors", bfl_flux(state_of(flux.transformer)))
    write(root / "clip" / "clip_l.safetensors", clip_l(state_of(flux.text_encoder)))
    write_gguf(root / "clip" / "t5-v1_1-xxl-encoder-Q8_0.gguf", llama_t5(state_of(flux.text_encoder_2)), "Q8_0")
    write(root / "vae" / "ae.safetensors", ldm_vae(state_of(flux.vae)))
    (root / "loras").mkdir()
    save_file({"transformer.x.lora_A.weight": torch.zeros(1000, 250)}, root / "loras" / "style.safetensors")
    write_controlnets(root / "controlnet")
    return root


@dataclass
class Planner:
    """The planner, in this process and with a user's models folder."""

    models: Path

    def ask(self, *arguments: str) -> tuple[int, str, str]:
        """What it prints: exit code, answer, error."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = plan_command.main([f"--models={self.models}", *arguments])
        return code, out.getvalue(), err.getvalue()

    def plan(self, *arguments: str) -> dict[str, Any]:
        """The answer for programs."""
        code, out, err = self.ask("--json", "--ram", "64GB", *arguments)
        assert code == plan_command.FITS, err
        return json.loads(out)


@pytest.fixture
def planner(models: Path) -> Planner:
    """One with the models above."""
    return Planner(models)


def test_the_command_looks_into_the_models_folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEGEN_STATE_DIR", str(models.parents[1]))
    done = imagegen("--model", "my-flux", "--vram", "8GB", "--ram", "32GB")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("my-flux: 128x128, 28 steps\non a card with 7.5 GB free")


def test_a_diffusers_folder_is_planned_by_its_files(planner: Planner) -> None:
    found = planner.plan("--model", "my-flux", "--vram", "8GB")
    transformer = found["plan"]["components"]["transformer"]
    assert transformer["bytes"] < 1_000_000
    assert transformer["blocks"] == 2
    assert planner.plan("--model", str(planner.models / "diffusers" / "my-flux"), "--vram", "8GB") == found


def test_single_files_are_planned_by_their_headers(planner: Planner) -> None:
    found = planner.plan("--model", "own.safetensors", "--vram", "8GB")
    parts = found["plan"]["components"]
    assert parts["text_encoder_2"]["storage"] == "gguf"
    assert 10_000_000 < parts["transformer"]["bytes"] < 40_000_000
    assert found["plan"]["offload"] == "none"
    for name in ("own", "diffusion_models/own.safetensors", str(planner.models / "unet" / "own.safetensors")):
        assert planner.plan("--model", name, "--vram", "8GB")["plan"] == found["plan"]


def test_what_a_single_file_lacks_is_counted_as_published(planner: Planner) -> None:
    vae = planner.models / "vae" / "ae.safetensors"
    hidden = vae.rename(vae.with_suffix(".hidden"))
    try:
        _, out, err = planner.ask("--model", "own", "--vram", "8GB", "--ram", "32GB")
    finally:
        hidden.rename(vae)
    assert out.startswith("own: 1024x1024"), err
    assert "- no file found for vae: the plan assumes the published size of flux-schnell" in out


def test_an_unknown_name_lists_what_is_here(planner: Planner) -> None:
    code, _, error = planner.ask("--model", "nope")
    assert code == plan_command.INVALID
    assert "my-flux" in error
    assert "diffusion_models/own.safetensors" in error


def test_loras_and_controlnets_take_their_room(planner: Planner) -> None:
    card = ("--model", "flux-dev", "--vram", "16GB")
    plain = planner.plan(*card)["plan"]["components"]["transformer"]
    more = planner.plan(*card, "--lora", "style,500MB")["plan"]["components"]["transformer"]
    assert more["bytes"] == pytest.approx(plain["bytes"] + 501_000_000, abs=10_000)
    guided = planner.plan(*card, "--controlnet", "1.5GB")["plan"]["components"]
    assert guided["controlnet"]["bytes"] == 1_500_000_000
    assert guided["transformer"]["resident_blocks"] < plain["resident_blocks"]
    tiny = planner.plan("--model", "my-flux", "--vram", "8GB", "--controlnet", "tiny-flux-canny")["plan"]["components"]
    assert 0 < tiny["controlnet"]["bytes"] < 1_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--controlnet", "tiny-sdxl-canny"), "tiny-sdxl-canny was made for sdxl, my-flux is flux"),
        (("--controlnet", "nope"), "there is no ControlNet 'nope' in models/controlnet"),
        (("--lora", "nope"), "there is no LoRA 'nope' in models/loras; or give its size: 300MB"),
    ],
)
def test_adapters_that_cannot_be_used_say_so(planner: Planner, arguments: tuple[str, ...], message: str) -> None:
    code, _, error = planner.ask("--model", "my-flux", *arguments)
    assert code == plan_command.INVALID
    assert message in error
