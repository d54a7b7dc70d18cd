"""Loading in a real ComfyUI: the Load Model Files node, files that are found, and what is reported meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.pack.comfy_server import ComfyServer, comfyui_dir, running_comfyui
from tests.pack.fake_hub import FakeHub, running_hub
from tests.pack.graphs import PROMPT, node, text_to_image
from tests.tiny_files import bfl_flux, clip_l, ldm_vae, state_of, tiny_flux, write

CUSTOM_NODES = Path(__file__).parents[3] / "custom_nodes"
MAIN = "diffusion_models/flux1-dev.safetensors"


@dataclass
class House:
    """A ComfyUI with the single files of a tiny FLUX.1 dev, and a Hub that has a tiny FLUX in every repository."""

    comfyui: ComfyServer
    hub: FakeHub
    models: Path
    flux: Any


@pytest.fixture(scope="module")
def house(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One for all tests here."""
    base = tmp_path_factory.mktemp("files")
    flux = tiny_flux(comfyui_dir(), guidance=True)
    flux.set_progress_bar_config(disable=True)
    for part in (flux.transformer, flux.text_encoder, flux.text_encoder_2, flux.vae):
        part.eval().requires_grad_(False)
    write(base / "models" / MAIN, bfl_flux(state_of(flux.transformer)))
    write(base / "models" / "text_encoders/clip_l.safetensors", clip_l(state_of(flux.text_encoder)))
    write(base / "models" / "clip/t5xxl_fp16.safetensors", state_of(flux.text_encoder_2))
    write(base / "models" / "vae/ae.safetensors", ldm_vae(state_of(flux.vae)))
    with running_hub(tiny_models["tiny-flux-schnell"]) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        with running_comfyui(comfyui_dir(), base, CUSTOM_NODES, environment) as server:
            yield House(server, hub, base / "models", flux)


def files_graph(**changes: Any) -> dict[str, dict[str, Any]]:
    """Text to image with Load Model Files."""
    graph = text_to_image("", steps=2, guidance=3.5, width=256, height=256)
    inputs = {
        "model_file": MAIN,
        "text_encoder": "auto",
        "text_encoder_2": "auto",
        "vae": "auto",
        "family": "auto",
        "precision": "fp32",
        "offload": "auto",
    }
    graph["load"] = node("NeuroLuxLoadModelFiles", **{**inputs, **changes})
    return graph


def plain(flux: Any) -> np.ndarray:
    """What diffusers alone makes of it."""
    with torch.no_grad():
        image = flux(
            PROMPT,
            width=256,
            height=256,
            num_inference_steps=2,
            guidance_scale=3.5,
            generator=torch.Generator().manual_seed(7),
        ).images[0]
    return np.asarray(image)


def test_the_node_offers_the_files_that_are_there(house: House) -> None:
    required = house.comfyui.get("/object_info/NeuroLuxLoadModelFiles")["NeuroLuxLoadModelFiles"]["input"]["required"]
    options = {name: entry[1].get("options", entry[0]) for name, entry in required.items()}
    assert options["model_file"] == [MAIN]
    assert options["text_encoder"] == [
        "auto",
        "text_encoders/clip_l.safetensors",
        "text_encoders/t5xxl_fp16.safetensors",
    ]
    assert options["vae"] == ["auto", "vae/ae.safetensors"]


def test_the_node_makes_the_image_of_the_folder(house: House) -> None:
    (image,) = house.comfyui.images(house.comfyui.run(files_graph()))
    assert np.array_equal(np.asarray(image), plain(house.flux))


def test_a_catalog_model_needs_no_download_when_its_files_are_there(house: House) -> None:
    models = house.comfyui.models()
    dev, schnell = models["flux-dev"], models["flux-schnell"]
    assert (dev["status"], dev["download_bytes"]) == ("ready", None)
    found = {part["component"]: part for part in dev["files"]["found"]}
    assert found["transformer"]["file"] == "flux1-dev.safetensors"
    assert found["transformer"]["folder"] == str(house.models / "diffusion_models")
    assert found["transformer"]["type"] == "fp32"
    assert 28_000_000 < found["transformer"]["bytes"] < 30_000_000
    assert dev["files"]["missing"] == []
    assert dev["files"]["hint"].startswith("ready: ")

    assert schnell["status"] == "missing"
    assert "FLUX.1-schnell is gated: accept its licence" in schnell["reason"]
    assert schnell["files"]["download"] == {
        "repo": "black-forest-labs/FLUX.1-schnell",
        "bytes": 33_740_000_000,
        "gated": True,
        "license": "Apache-2.0",
    }
    (missing, *_) = [part for part in schnell["files"]["missing"] if part["component"] == "transformer"]
    assert (missing["kind"], missing["folder"], missing["example"]) == (
        "FLUX transformer",
        "models/diffusion_models",
        "flux1-schnell.safetensors",
    )
    assert missing["bytes"] == 2 * 11_891_178_560
    wanted = "to download black-forest-labs/FLUX.1-schnell (33.7 GB, gated, Apache-2.0)"
    assert wanted in schnell["files"]["hint"]


def test_loading_is_reported(house: House) -> None:
    graph = {"load": files_graph(precision="bf16")["load"], "warm": node("NeuroLuxWarmUp", pipeline=["load", 0])}
    run = house.comfyui.run_watched(graph)
    assert run.status == "success", run.messages
    reports = [data for name, data in run.events if name == "neurolux.loading"]
    total = sum(path.stat().st_size for path in house.models.rglob("*.safetensors"))
    assert [report["node"] for report in reports] == ["load"] * len(reports)
    assert reports[-1]["value"] == reports[-1]["maximum"]
    assert 0.99 * total < reports[-1]["maximum"] <= total
    assert [report["value"] for report in reports] == sorted(report["value"] for report in reports)
    assert any(text.startswith("Loading flux1-dev + ") for _, text in run.texts)
    assert run.texts[-1][1].startswith("Loaded flux1-dev + ")  # the editor goes on showing it


def test_the_last_report_of_a_pipeline_folder_is_that_all_of_it_is_loaded(house: House) -> None:
    load = node("NeuroLuxLoadModel", model="starter", precision="auto", offload="auto")
    run = house.comfyui.run_watched({"load": load, "warm": node("NeuroLuxWarmUp", pipeline=["load", 0])})
    assert run.status == "success", run.messages
    last = [data for name, data in run.events if name == "neurolux.loading"][-1]
    assert last["value"] == last["maximum"]
    assert run.texts[-1][1].startswith("Loaded starter: ")


def test_a_download_is_reported_on_the_node(house: House) -> None:
    load = node("NeuroLuxLoadModel", model="flux-schnell", precision="auto", offload="auto")
    run = house.comfyui.run_watched({"load": load, "warm": node("NeuroLuxWarmUp", pipeline=["load", 0])})
    assert run.status == "success", run.messages
    reports = [data for name, data in run.events if name == "neurolux.download"]
    assert reports[-1]["done_bytes"] == reports[-1]["total_bytes"] > 500_000
    assert {(report["repo"], report["node"]) for report in reports} == {("black-forest-labs/FLUX.1-schnell", "load")}
    assert set(reports[0]) == {
        "prompt_id", "node", "repo", "file", "done_bytes", "total_bytes", "bytes_per_second",
    }  # fmt: skip
    shown = [text for name, text in run.texts if name == "load" and text.startswith("Downloading ")]
    assert shown
    assert "MB of " in shown[0]
    bars = [data for name, data in run.events if name == "progress" and data["node"] == "load"]
    assert bars[-1]["value"] == bars[-1]["max"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"model_file": "diffusion_models/gone.safetensors"},
            "WeightsMissing",
            "models/diffusion_models has no 'gone.safetensors'; it has flux1-dev.safetensors. Put the file there",
        ),
        (
            {"text_encoder_2": "text_encoders/clip_l.safetensors"},
            "WeightsMissing",
            "clip_l.safetensors is a CLIP-L encoder; text_encoder_2 needs a T5 encoder: choose another file, or auto",
        ),
        ({"vae": MAIN}, "WeightsMissing", "flux1-dev.safetensors is a FLUX transformer; vae needs a VAE"),
        (
            {"model_file": "vae/ae.safetensors"},
            "WeightsMissing",
            "ae.safetensors is a VAE; model_file needs one of: Chroma transformer, FLUX transformer, "
            "FLUX.2 klein transformer, Krea 2 transformer, Qwen-Image transformer, Stable Diffusion 1.5 UNet, SDXL "
            "UNet, Z-Image transformer, or a checkpoint with one",
        ),
        ({"family": "sdxl"}, "InvalidParameter", "flux1-dev.safetensors is a FLUX transformer, and family is sdxl"),
    ],
)
def test_a_wrong_file_says_what_it_is(house: House, changes: dict[str, str], error: str, message: str) -> None:
    run = house.comfyui.run(files_graph(**changes))
    assert (run.status, run.error_class) == ("error", error)
    assert message in run.error_text
