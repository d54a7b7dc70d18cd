"""Krea 2: its image is that of plain diffusers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Krea2Pipeline, Krea2Transformer2DModel
from neurolux.errors import InvalidParameter
from transformers import Qwen3VLConfig, Qwen3VLModel

from tests.pack.families.parity import plain
from tests.pack.pipelines import PROMPT, borrow, budget_for, handle_for, sample_with
from tests.pack.stages.test_images import encoded, redraw, some_image

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
NEGATIVE = "a very small dog"
GUIDANCE = 4.0


def image(pipe: Any, **more: Any) -> torch.Tensor:
    """(1, H, W, 3) in [0, 1]."""
    call = {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 2, "guidance_scale": GUIDANCE,
        "width": 128, "height": 128, "output_type": "pt", "generator": torch.Generator().manual_seed(7), **more,
    }  # fmt: skip
    with torch.no_grad():
        return pipe(**call).images.permute(0, 2, 3, 1).float()


@pytest.fixture(scope="module")
def turbo(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a distilled model."""
    folder = shutil.copytree(tiny_models["tiny-krea2"], tmp_path_factory.mktemp("turbo") / "tiny-krea2-turbo")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "is_distilled": True}))
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("offload", ["none", "stream"])
def test_its_image_is_that_of_diffusers(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, precision: str, offload: str
) -> None:
    from neurolux.memory import placement

    monkeypatch.setattr(placement, "device_budget", budget_for(0))
    folder = tiny_models["tiny-krea2"]
    expected = image(plain(folder, precision, Krea2Pipeline))
    handle = handle_for(folder, precision=precision, offload=offload)
    made = sample_with(borrow(handle), handle, 2, negative=NEGATIVE, guidance=GUIDANCE + 1)
    assert torch.equal(made, expected)


def test_turbo_is_neither_guided_nor_shifted_by_size(tiny_models: dict[str, Path], turbo: Path) -> None:
    pipe = plain(turbo, "fp32", Krea2Pipeline)
    expected = image(pipe, guidance_scale=0.0)
    pipe.register_to_config(is_distilled=False)
    assert not torch.equal(image(pipe, guidance_scale=0.0), expected)
    handle = handle_for(turbo, precision="fp32")
    assert (handle.model.defaults.num_inference_steps, handle.model.defaults.guidance_scale) == (8, 0.0)
    assert torch.equal(sample_with(borrow(handle), handle, 2), expected)


def test_guidance_needs_no_negative_prompt(tiny_models: dict[str, Path]) -> None:
    expected = image(plain(tiny_models["tiny-krea2"], "fp32", Krea2Pipeline), negative_prompt=None)
    handle = handle_for(tiny_models["tiny-krea2"], precision="fp32")
    assert torch.equal(sample_with(borrow(handle), handle, 2, guidance=GUIDANCE + 1), expected)


def test_norms_stay_in_fp32_and_what_reads_no_text_is_not_loaded(tiny_models: dict[str, Path]) -> None:
    loaded = borrow(handle_for(tiny_models["tiny-krea2"], precision="bf16"))
    parts = loaded.pipe.components
    types = {"norm" in name: weight.dtype for name, weight in parts["transformer"].named_parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    names = [name for name, _ in parts["text_encoder"].named_parameters()]
    assert names
    assert all(name.startswith("language_model.") for name in names)


def test_an_image_to_begin_with_is_refused_with_the_families_that_take_one(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(InvalidParameter, match="model of Krea 2, which has no image-to-image here; choose .*FLUX"):
        redraw(tiny_models["tiny-krea2"], encoded(some_image()), steps=4, strength=0.7)


@pytest.mark.parametrize("name", ["transformer", "text_encoder"])
def test_shapes_tell_the_configuration_of_the_published_parts(name: str) -> None:
    from neurolux.families.parts.architectures import on_meta
    from neurolux.families.registry import family_of
    from transformers import Qwen3VLTextConfig

    real = {
        "transformer": Krea2Transformer2DModel,
        "text_encoder": lambda: Qwen3VLModel(
            Qwen3VLConfig(
                text_config=Qwen3VLTextConfig(
                    hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_key_value_heads=8
                ).to_dict()
            )
        ),
    }
    part = family_of("krea2").components[name].part
    shapes = {key: tuple(value.shape) for key, value in on_meta(real[name]).state_dict().items()}
    read = {key: shape for key, shape in shapes.items() if not key.startswith(part.unread or "-")}
    made = on_meta(lambda: part.empty(part.config(read), None))
    assert {key: tuple(value.shape) for key, value in made.state_dict().items()} == read
