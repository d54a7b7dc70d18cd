"""The image equals, bit for bit on a CPU, what the plain diffusers pipeline returns, wherever the weights live."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from tests.pack.comfy_server import ComfyServer
from tests.pack.graphs import PROMPT, text_to_image
from tests.pack.pipelines import borrow, budget_for, handle_for, make_image, sample_with
from tests.tiny_models import write_flux

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "flux-schnell": (
        "tiny-flux-schnell",
        {},
        {"num_inference_steps": 4, "guidance_scale": 0.0, "max_sequence_length": 256},
    ),
    "flux-dev": (
        "tiny-flux-dev",
        {"steps": 5},
        {"num_inference_steps": 5, "guidance_scale": 3.5, "max_sequence_length": 512},
    ),
    "sdxl-lightning": ("tiny-sdxl-lightning", {}, {"num_inference_steps": 4, "guidance_scale": 0.0}),
    "sdxl with guidance": (
        "tiny-sdxl",
        {"steps": 6, "guidance": 5.0, "negative": "blurry, dark"},
        {"num_inference_steps": 6, "guidance_scale": 5.0, "negative_prompt": "blurry, dark"},
    ),
    "sdxl without a negative prompt": (
        "tiny-sdxl",
        {"steps": 3},
        {"num_inference_steps": 3, "guidance_scale": 5.0},
    ),
    "sdxl with an empty negative prompt": (
        "tiny-sdxl",
        {"steps": 3, "negative": ""},
        {"num_inference_steps": 3, "guidance_scale": 5.0},
    ),
    "sdxl without guidance": (
        "tiny-sdxl",
        {"steps": 3, "guidance": 1.0},
        {"num_inference_steps": 3, "guidance_scale": 1.0},
    ),
    "not square": (
        "tiny-flux-dev",
        {"steps": 3, "width": 160, "height": 96},
        {"num_inference_steps": 3, "guidance_scale": 3.5, "width": 160, "height": 96},
    ),
}


PLACED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "flux-schnell": (
        "deep-flux-schnell",
        {"steps": 2},
        {"num_inference_steps": 2, "guidance_scale": 0.0, "max_sequence_length": 256},
    ),
    "flux-dev": (
        "deep-flux-dev",
        {"steps": 2},
        {"num_inference_steps": 2, "guidance_scale": 3.5, "max_sequence_length": 512},
    ),
    "sdxl-lightning": CASES["sdxl-lightning"],
    "sdxl with guidance": (
        "tiny-sdxl",
        {"steps": 2, "guidance": 5.0, "negative": "blurry, dark"},
        {"num_inference_steps": 2, "guidance_scale": 5.0, "negative_prompt": "blurry, dark"},
    ),
}
"""One of each family, in as few steps as go twice through every block; FLUX with enough of them to stream."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def plain_diffusers(folder: Path, dtype: torch.dtype = torch.float32, **arguments: Any) -> Image.Image:
    """What diffusers alone makes of it.

    Its weights are copied into RAM: in a mapped safetensors file they begin at any address, and at some addresses MKL
    takes another way through a matrix product, which rounds otherwise. torch's own memory begins at multiples of 64.
    Nor do they require gradients, as the pack's do not: for weights that do, torch folds batches into one product
    (aten/src/ATen/native/LinearAlgebra.cpp, should_fold), which a CPU without bfloat16 instructions rounds otherwise.
    """
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            for weight in part.parameters():
                weight.data = weight.data.clone()
                weight.requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(7)
    return pipe(prompt=PROMPT, generator=generator, **{"width": 128, "height": 128, **arguments}).images[0]


@cache
def plain_case(folder: Path, case: str, precision: str) -> Image.Image:
    """``plain_diffusers`` for one of CASES, run once."""
    return plain_diffusers(folder, DTYPES[precision], **PLACED[case][2])


@pytest.fixture(scope="module")
def models(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny models, and FLUX with six blocks in the transformer and in T5."""
    root = tmp_path_factory.mktemp("deep")
    return tiny_models | {
        f"deep-flux-{kind}": write_flux(root / f"deep-flux-{kind}", guidance_embeds=kind == "dev", seed=5, blocks=3)
        for kind in ("schnell", "dev")
    }


@pytest.fixture
def placements(unloaded: None) -> ModuleType:
    """The pack's placement module; its pipelines are dropped afterwards."""
    from neurolux.memory import placement
    from neurolux.stages.prompts.embedding_cache import embedding_cache

    embedding_cache.clear()
    return placement


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("offload", ["none", "model", "stream", "sequential", "disk"])
@pytest.mark.parametrize("case", PLACED)
def test_where_weights_live_does_not_change_the_image(
    models: dict[str, Path],
    placements: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    offload: str,
    precision: str,
) -> None:
    """stream and disk with a third of the blocks resident, so that there is something to stream."""
    monkeypatch.setattr(placements, "device_budget", budget_for(1 / 3))
    model, ours, _ = PLACED[case]
    handle = handle_for(models[model], precision=precision, offload=offload)
    loaded = borrow(handle)
    image = sample_with(
        loaded,
        handle,
        ours.get("steps", 0),
        prompt=PROMPT,
        negative=ours.get("negative"),
        guidance=ours.get("guidance", -1.0),
    )
    assert np.array_equal(np.asarray(make_image(image)), np.asarray(plain_case(models[model], case, precision)))
    streamed = {name for name, patcher in loaded.placement._patchers.items() if patcher.residency.streamed_bytes}
    assert (loaded.denoiser_name in streamed) == (offload in ("stream", "sequential", "disk"))
    split_encoder = case.startswith("flux") and offload in ("stream", "disk")
    assert ("text_encoder_2" in streamed) == (split_encoder or offload == "sequential")


@pytest.mark.parametrize("case", CASES)
def test_image_equals_plain_diffusers(comfyui: ComfyServer, tiny_models: dict[str, Path], case: str) -> None:
    model, ours, theirs = CASES[case]
    (image,) = comfyui.images(comfyui.run(text_to_image(model, **ours)))
    expected = plain_diffusers(tiny_models[model], **theirs)
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_prompt_and_seed_change_the_image(comfyui: ComfyServer) -> None:
    graphs = [
        text_to_image("tiny-flux-schnell"),
        text_to_image("tiny-flux-schnell", prompt="a dog"),
        text_to_image("tiny-flux-schnell", seed=8),
    ]
    images = {image.tobytes() for graph in graphs for image in comfyui.images(comfyui.run(graph))}
    assert len(images) == 3
