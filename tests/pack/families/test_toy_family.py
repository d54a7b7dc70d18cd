"""The seam is whole: a family that is defined in one file is loaded, planned, streamed, quantised and sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AuraFlowPipeline
from neurolux.families.registry import families

from tests.pack.families import toy
from tests.pack.pipelines import PROMPT, borrow, budget_for, handle_for, sample_with

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("toy") / "tiny-toy")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy family among the others, as if its module stood in their room."""
    monkeypatch.setitem(families(), "toy", toy.FAMILY)


@pytest.fixture(scope="module")
def expected(folder: Path) -> torch.Tensor:
    """What plain diffusers makes of it: (1, H, W, 3) in [0, 1]."""
    pipe: Any = AuraFlowPipeline.from_pretrained(folder)
    made = pipe(
        PROMPT, negative_prompt="a dog", num_inference_steps=3, guidance_scale=3.5, width=128, height=128,
        max_sequence_length=toy.TOKENS, generator=torch.Generator().manual_seed(7), output_type="pt",
    ).images  # fmt: skip
    return made.permute(0, 2, 3, 1)


@pytest.mark.parametrize("offload", ["none", "stream", "sequential", "disk"])
def test_its_image_is_that_of_diffusers_wherever_its_weights_live(
    folder: Path, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch, offload: str
) -> None:
    from neurolux.memory import placement

    monkeypatch.setattr(placement, "device_budget", budget_for(0))  # room for two blocks at a time
    handle = handle_for(folder, precision="fp32", offload=offload)
    loaded = borrow(handle)
    assert torch.equal(sample_with(loaded, handle, 0, negative="a dog"), expected)
    streamed = {name for name, patcher in loaded.placement._patchers.items() if patcher.residency.streamed_bytes}
    assert ("transformer" in streamed) == (offload != "none")
    assert loaded.shapes["transformer"].blocks
    assert len(loaded.shapes["transformer"].blocks) == 4


def test_every_tensor_of_its_encoder_travels_in_the_conditioning(folder: Path) -> None:
    from neurolux.stages.prompts.encode import encode, encoded_tensors

    loaded = borrow(handle_for(folder, precision="fp32"))
    tensors = encoded_tensors(loaded, encode(loaded, PROMPT), "positive")
    assert list(tensors) == ["prompt_embeds", "prompt_attention_mask"]
    plain: Any = AuraFlowPipeline.from_pretrained(folder)
    embeds, mask, _, _ = plain.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    torch.testing.assert_close(tensors["prompt_embeds"], embeds)  # an address decides how a product is rounded
    assert torch.equal(tensors["prompt_attention_mask"], mask)
    assert not tensors["prompt_attention_mask"].is_floating_point()


def test_its_own_blocks_are_quantised(folder: Path, expected: torch.Tensor) -> None:
    from neurolux.weights.quantized.storage import StoredLinear

    handle = handle_for(folder, precision="int8")
    loaded = borrow(handle)
    stored = {name.split(".")[0] for name, part in loaded.denoiser.named_modules() if isinstance(part, StoredLinear)}
    assert stored == {"joint_transformer_blocks", "single_transformer_blocks"}
    made = sample_with(loaded, handle, 0, negative="a dog")
    assert 0 < (made - expected).abs().mean() < 0.05


def test_what_it_does_not_have_is_refused_with_its_name(folder: Path) -> None:
    from neurolux.adapters.control.applied import check_model
    from neurolux.errors import InvalidParameter
    from neurolux.training.settings import check_model as check_training

    model = handle_for(folder).model
    with pytest.raises(InvalidParameter, match="there are some for flux, qwen-image, sdxl models, and it is a toy"):
        check_model(model)
    with pytest.raises(InvalidParameter, match="is a toy model; LoRAs are trained on flux, flux2, qwen-image, sdxl,"):
        check_training(model, None, None)
