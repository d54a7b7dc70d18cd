"""Pictures made of pictures: as diffusers' own pipelines make them, bit for bit, and put back where they came from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests.pack.pipelines import handle_for, picture

if TYPE_CHECKING:
    from neurolux.catalog import Model

pytestmark = pytest.mark.usefixtures("comfy_modules", "loaded_models")
PROMPT = "a cat"
SIDE = 128
FLUX = {"guidance_scale": 3.5, "max_sequence_length": 512}
SDXL = {"guidance_scale": 5.0, "negative_prompt": "dark"}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "flux image to image": (
        "tiny-flux-dev", "FluxImg2ImgPipeline", {**FLUX, "num_inference_steps": 5, "strength": 0.5},
    ),
    "flux inpaint": ("tiny-flux-dev", "FluxInpaintPipeline", {**FLUX, "num_inference_steps": 4, "strength": 0.7}),
    "flux fill": ("tiny-flux-fill", "FluxFillPipeline", {**FLUX, "num_inference_steps": 3, "strength": 1.0}),
    "flux edit": ("tiny-flux-kontext", "FluxKontextPipeline", {**FLUX, "num_inference_steps": 2}),
    "sdxl image to image": (
        "tiny-sdxl", "StableDiffusionXLImg2ImgPipeline", {**SDXL, "num_inference_steps": 5, "strength": 0.5},
    ),
    "sdxl inpaint": (
        "tiny-sdxl", "StableDiffusionXLInpaintPipeline", {**SDXL, "num_inference_steps": 4, "strength": 0.8},
    ),
    "sdxl inpaint of everything": (
        "tiny-sdxl", "StableDiffusionXLInpaintPipeline", {**SDXL, "num_inference_steps": 2, "strength": 1.0},
    ),
    "lightning image to image": (
        "tiny-sdxl-lightning", "StableDiffusionXLImg2ImgPipeline",
        {"guidance_scale": 0.0, "num_inference_steps": 4, "strength": 0.5},
    ),
    "lightning inpaint": (
        "tiny-sdxl-lightning", "StableDiffusionXLInpaintPipeline",
        {"guidance_scale": 0.0, "num_inference_steps": 4, "strength": 0.75},
    ),
}  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture
def loaded_models(comfy_modules: None) -> Iterator[None]:
    """What a test loads is dropped afterwards."""
    yield
    from neurolux.pipelines.registry import registry

    for spec in list(registry._loaded):
        registry._drop(spec)


@pytest.fixture
def model(tiny_models: dict[str, Path]) -> Model:
    """A model whose sides are multiples of 16 from 64 to 2048."""
    from neurolux.folder_models import folder_model

    found = folder_model(tiny_models["tiny-flux-dev"])
    assert found is not None
    return found


def some_picture(width: int = SIDE, height: int = SIDE, seed: int = 3) -> torch.Tensor:
    """A smooth picture of 8-bit colours, (1, H, W, 3)."""
    noise = torch.randint(0, 256, (1, 3, 6, 6), generator=torch.Generator().manual_seed(seed)).float()
    smooth = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")
    return smooth.round().movedim(1, -1) / 255


def some_mask() -> torch.Tensor:
    """A rectangle on the grid of the latent, (1, H, W)."""
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 32:96, 16:80] = 1
    return mask


def redraw(
    folder: Path,
    latent_of: Any,
    *,
    steps: int,
    strength: float = 1.0,
    guidance: float = -1.0,
    negative: str | None = None,
    seed: int = 7,
    **choices: Any,
) -> torch.Tensor:
    """The pack's pictures, decoded; ``latent_of`` makes the latent with the loaded pipeline."""
    from neurolux.pipelines.decode import decode
    from neurolux.pipelines.encode import encode
    from neurolux.pipelines.sample import sample

    handle = handle_for(folder, **choices)
    loaded = handle.loaded()
    with torch.inference_mode():  # as ComfyUI runs nodes
        positive = encode(loaded, PROMPT)
        against = encode(loaded, negative) if negative is not None else None
        samples = sample(loaded, handle.spec, positive, against, latent_of(loaded), seed, steps, guidance, strength)
        return decode(loaded, samples)


def encoded(pictures: torch.Tensor, mask: torch.Tensor | None = None, fit: str = "crop", count: int = 1) -> Any:
    """What Encode Picture does, once there is a loaded pipeline."""

    def make(loaded: Any) -> dict[str, Any]:
        from neurolux.pipelines.pictures import encode_pictures, plan_frame

        frame = plan_frame(loaded.model, (pictures.shape[2], pictures.shape[1]), fit)
        return encode_pictures(loaded, pictures, mask, frame, count)

    return make


def by_diffusers(folder: Path, class_name: str, dtype: torch.dtype, **arguments: Any) -> Image.Image:
    """What the plain pipeline makes; its weights copied into RAM, see test_parity.py."""
    pipe = getattr(diffusers, class_name).from_pretrained(folder, dtype=dtype)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            for weight in part.parameters():
                weight.data = weight.data.clone()
    pipe.set_progress_bar_config(disable=True)
    return pipe(prompt=PROMPT, generator=torch.Generator("cpu").manual_seed(7), **arguments).images[0]


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_the_picture_is_that_of_diffusers(tiny_models: dict[str, Path], case: str, precision: str) -> None:
    folder, class_name, arguments = CASES[case]
    masked = "Inpaint" in class_name or "Fill" in class_name
    theirs: dict[str, Any] = {"image": picture(some_picture())}
    if masked:
        theirs["mask_image"] = Image.fromarray((some_mask()[0].numpy() * 255).astype("uint8"))
    if class_name.startswith("Flux") or masked:
        theirs |= {"width": SIDE, "height": SIDE}
    if "Kontext" in class_name:
        theirs["max_area"] = SIDE * SIDE
    expected = by_diffusers(tiny_models[folder], class_name, DTYPES[precision], **theirs, **arguments)
    made = redraw(
        tiny_models[folder],
        encoded(some_picture(), some_mask() if masked else None),
        steps=arguments["num_inference_steps"],
        strength=arguments.get("strength", 1.0),
        guidance=arguments["guidance_scale"],
        negative=arguments.get("negative_prompt"),
        precision=precision,
        offload="none",
    )
    assert np.array_equal(np.asarray(picture(made)), np.asarray(expected))


@pytest.mark.parametrize("offload", ["model", "stream", "sequential"])
@pytest.mark.parametrize("name", ["tiny-flux-dev", "tiny-sdxl"])
def test_where_weights_live_does_not_change_the_picture(tiny_models: dict[str, Path], name: str, offload: str) -> None:
    made = [
        redraw(tiny_models[name], encoded(some_picture(), some_mask()), steps=3, strength=0.7, offload=where)
        for where in ("none", offload)
    ]
    assert torch.equal(made[0], made[1])
