"""What previews show: at every step, the image that the model aims at just then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pack.pipelines import LATENT, PROMPT, borrow, handle_for

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")


class Shown(list[torch.Tensor]):
    """A previewer that keeps the latents that it is to show."""

    def __call__(self, latents: torch.Tensor) -> Image.Image:
        self.append(latents.clone())
        return Image.new("RGB", (8, 8))


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("model", ["tiny-flux-dev", "tiny-sdxl-lightning"])
def test_a_preview_is_what_the_model_predicts_in_that_step(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, model: str, strength: float
) -> None:
    """Compared with the prediction itself, taken where the denoiser returns it."""
    from neurolux.stages import sample as module
    from neurolux.stages.prompts.encode import encode

    handle, shown, expected = handle_for(tiny_models[model]), Shown(), []
    monkeypatch.setattr(module, "make_previewer", lambda loaded: shown)
    latent: dict[str, Any] = dict(LATENT)
    if strength < 1:
        latent["image"] = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))
        latent["samples"] = torch.ones(1, 4, 16, 16)
    with torch.inference_mode():
        loaded = borrow(handle)
        request = module.plan_sample(handle.model, handle.spec.variant, latent, 7, 4, -1.0, strength)
        denoiser = getattr(loaded.pipe, loaded.denoiser_name)

        def predicted(_: Any, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
            if loaded.denoiser_name == "transformer":
                clean = given["hidden_states"] - given["timestep"].float()[:, None, None] * output[0]
                expected.append(module.unpacked(loaded, loaded.pipe, request, clean))
                return
            scaled, timestep = args[0], args[1]
            scheduler = loaded.pipe.scheduler
            sigma = scheduler.sigmas[scheduler.index_for_timestep(timestep)]
            expected.append(scaled * (sigma**2 + 1) ** 0.5 - sigma * output[0])

        hook = denoiser.register_forward_hook(predicted, with_kwargs=True)
        try:
            samples = module.sample(loaded, request, encode(loaded, PROMPT), None)
        finally:
            hook.remove()
        from neurolux.stages.decode import to_raw

        assert len(shown) == len(expected) == request.running == (4 if strength == 1 else 2)
        for seen, wanted in zip(shown, expected, strict=True):
            assert torch.allclose(seen.float(), wanted.float(), atol=2e-3)
        assert torch.allclose(to_raw(loaded, shown[-1]).float().cpu(), samples, atol=2e-3)


def test_latents_are_shown_in_the_folders_colours() -> None:
    from neurolux.stages.preview import project

    latents = torch.zeros(1, 2, 3, 5)
    latents[0, 0, 1, 4] = 1.0
    latents[0, 1, 2, 0] = 0.5
    image = np.asarray(project(latents, torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 2.0]]), torch.zeros(3)))
    assert image.shape == (3, 5, 3)
    assert image[1, 4].tolist() == [255, 0, 128]
    assert image[2, 0].tolist() == [128, 128, 255]
    assert image[0, 0].tolist() == [128, 128, 128]


def test_a_small_vae_shows_what_decode_gives(tiny_models: dict[str, Path]) -> None:
    from neurolux.stages.decode import decode, to_raw
    from neurolux.stages.preview import decode_preview

    with torch.inference_mode():
        loaded = borrow(handle_for(tiny_models["tiny-sdxl"]))
        latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
        with loaded.placement.stage(["vae"], 0):
            seen = np.asarray(decode_preview(loaded, latents))
        made = decode(loaded, to_raw(loaded, latents).float())
    assert seen.shape == (64, 96, 3)
    assert np.abs(seen.astype(float) - made[0].numpy() * 255).max() <= 1


def test_a_folder_with_its_own_colours_is_shown_in_them(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else by its own VAE if that is small."""
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod
    from neurolux.stages.preview import decode_preview, make_previewer, project

    monkeypatch.setattr(latent_preview.args, "preview_method", LatentPreviewMethod.Auto)
    latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    folder = shutil.copytree(tiny_models["tiny-sdxl"], tmp_path / "coloured")
    factors = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    (folder / "latent_rgb.json").write_text(json.dumps({"factors": factors.tolist(), "bias": [0.1, 0.2, 0.3]}))
    for path, coloured in ((folder, True), (tiny_models["tiny-sdxl"], False)):
        loaded = borrow(handle_for(path))
        previewer = make_previewer(loaded)
        assert previewer is not None
        with torch.inference_mode(), loaded.placement.stage(["vae"], 0):
            seen, decoded = previewer(latents), decode_preview(loaded, latents)
        expected = project(latents, factors, torch.tensor([0.1, 0.2, 0.3])) if coloured else decoded
        assert np.array_equal(np.asarray(seen), np.asarray(expected))
        assert expected.size == ((12, 8) if coloured else (96, 64))
