"""The picture equals, bit for bit on a CPU, what the plain diffusers pipeline returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from tests.pack.comfy_server import ComfyServer
from tests.pack.graphs import PROMPT, text_to_image

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


def plain_diffusers(folder: Path, **arguments: Any) -> Image.Image:
    """What diffusers alone makes of it."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(7)
    return pipe(prompt=PROMPT, generator=generator, **{"width": 128, "height": 128, **arguments}).images[0]


@pytest.mark.parametrize("case", CASES)
def test_image_equals_plain_diffusers(comfyui: ComfyServer, tiny_models: dict[str, Path], case: str) -> None:
    model, ours, theirs = CASES[case]
    (image,) = comfyui.images(comfyui.run(text_to_image(model, **ours)))
    expected = plain_diffusers(tiny_models[model], **theirs)
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_prompt_and_seed_change_the_picture(comfyui: ComfyServer) -> None:
    graphs = [
        text_to_image("tiny-flux-schnell"),
        text_to_image("tiny-flux-schnell", prompt="a dog"),
        text_to_image("tiny-flux-schnell", seed=8),
    ]
    pictures = {image.tobytes() for graph in graphs for image in comfyui.images(comfyui.run(graph))}
    assert len(pictures) == 3
