"""Values that are not numbers end the job with the stage and a remedy, not with a black image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.pack.pipelines import LATENT, borrow, handle_for, sample_with
from tests.tiny_models import write_sdxl

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")


def changed(folder: Path, file: str, ending: str, factor: float) -> Path:
    """A tiny SDXL in ``folder``, the weight that ends in ``ending`` multiplied."""
    write_sdxl(folder, lightning=False)
    path = next((folder / file).glob("*.safetensors"))
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.endswith(ending))
    tensors[name] = tensors[name] * factor
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


NAN = float("nan")
STAGES = {
    "prompt": ("text_encoder_2", "layers.0.mlp.fc1.weight", "the encoded prompt's embeddings hold values"),
    "denoiser": ("unet", "conv_in.weight", "the sampled latents of damaged hold values"),
    "decoder": ("vae", "decoder.conv_in.weight", "the images decoded by damaged hold values"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_stage_is_named(tmp_path: Path, stage: str) -> None:
    from neurolux.errors import NotFinite

    part, ending, message = STAGES[stage]
    handle = handle_for(changed(tmp_path / "damaged", part, ending, NAN))
    with pytest.raises(NotFinite, match=f"{message}.*precision fp32 or bf16.*LoRAs"):
        sample_with(borrow(handle), handle)


def test_an_image_is_not_encoded_to_nothing(tmp_path: Path) -> None:
    from neurolux.errors import NotFinite

    from tests.pack.stages.test_images import encoded, some_image

    handle = handle_for(changed(tmp_path / "damaged", "vae", "encoder.conv_in.weight", NAN))
    with pytest.raises(NotFinite, match="the encoded images hold values"):
        encoded(some_image())(borrow(handle))


def test_what_another_node_made_is_looked_at(tiny_models: dict[str, Path]) -> None:
    from neurolux.errors import NotFinite
    from neurolux.images.pixels import as_images
    from neurolux.stages.decode import decode

    loaded = borrow(handle_for(tiny_models["tiny-sdxl"]))
    with pytest.raises(NotFinite, match="the latents given to Decode.*Look at the node that made them"):
        decode(loaded, torch.full((1, 4, 16, 16), NAN))
    with pytest.raises(NotFinite, match="the images hold"):
        as_images(torch.full((1, 8, 8, 3), NAN))


def test_a_vae_that_overflows_in_half_precision_runs_in_fp32(tmp_path: Path) -> None:
    from neurolux.stages.decode import decode

    folder = changed(tmp_path / "large", "vae", "decoder.conv_in.weight", 2e5)
    config = folder / "vae" / "config.json"  # which says that it may run in fp16
    config.write_text(config.read_text().replace('"force_upcast": true', '"force_upcast": false'))
    latent = torch.randn(LATENT["samples"].shape, generator=torch.Generator().manual_seed(1))
    made: dict[str, Any] = {}
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        loaded = borrow(handle_for(folder, precision=precision, offload="none"))
        with torch.inference_mode():
            made[precision] = decode(loaded, latent)
        assert loaded.pipe.vae.dtype == dtype
        assert any("run again in fp32" in text for text in loaded.take_warnings()) == (precision == "fp16")
    assert made["fp16"].std() > 0.01
    assert (made["fp16"] - made["fp32"]).abs().mean() < 0.05
