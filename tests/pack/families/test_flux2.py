"""FLUX.2 klein: its image is that of plain diffusers, from its folder and from all kinds of single files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline
from neurolux.errors import InvalidParameter

from tests.pack.families.parity import plain
from tests.pack.pipelines import PROMPT, borrow, budget_for, handle_for, make_image, sample_with
from tests.pack.stages.test_images import encoded, redraw, some_image

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
NEGATIVE = "a very small dog"
GUIDANCE = 4.0


def image(pipe: Any, negative: str | None = None, **more: Any) -> torch.Tensor:
    """(1, H, W, 3) in [0, 1]."""
    call = {
        "prompt": PROMPT, "num_inference_steps": 2, "guidance_scale": 0.0, "width": 128, "height": 128,
        "output_type": "pt", "generator": torch.Generator().manual_seed(7), **more,
    }  # fmt: skip
    with torch.no_grad():
        if negative is not None:
            call["negative_prompt_embeds"], _ = pipe.encode_prompt(negative)
        return pipe(**call).images.permute(0, 2, 3, 1).float()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("offload", ["none", "stream"])
def test_its_image_is_that_of_diffusers(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, precision: str, offload: str
) -> None:
    from neurolux.memory import placement

    monkeypatch.setattr(placement, "device_budget", budget_for(0))
    folder = tiny_models["tiny-flux2-klein"]
    expected = image(plain(folder, precision, Flux2KleinPipeline))
    handle = handle_for(folder, precision=precision, offload=offload)
    assert torch.equal(sample_with(borrow(handle), handle, 2), expected)


@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_a_base_model_is_guided(tiny_models: dict[str, Path], negative: str | None) -> None:
    folder = tiny_models["tiny-flux2-klein-base"]
    expected = image(plain(folder, "fp32", Flux2KleinPipeline), negative, guidance_scale=GUIDANCE)
    handle = handle_for(folder, precision="fp32")
    made = sample_with(borrow(handle), handle, 2, negative=negative, guidance=GUIDANCE)
    assert torch.equal(made, expected)


def test_a_distilled_model_takes_no_guidance(tiny_models: dict[str, Path]) -> None:
    handle = handle_for(tiny_models["tiny-flux2-klein"])
    with pytest.raises(InvalidParameter, match="guidance_scale 4 is outside 0 to 1 of this model"):
        sample_with(borrow(handle), handle, 2, guidance=4.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [(128, 128), (96, 160)])
def test_an_edited_image_is_that_of_diffusers(
    tiny_models: dict[str, Path], precision: str, size: tuple[int, int]
) -> None:
    folder = tiny_models["tiny-flux2-klein-base"]
    given = some_image(*size)
    expected = image(
        plain(folder, precision, Flux2KleinPipeline), NEGATIVE, guidance_scale=GUIDANCE, image=make_image(given),
        width=size[0], height=size[1],
    )  # fmt: skip
    made = redraw(
        folder, encoded(given), steps=2, strength=1.0, guidance=GUIDANCE, negative=NEGATIVE, precision=precision
    )
    assert torch.equal(made, expected)
