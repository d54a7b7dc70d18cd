"""Images redrawn under ControlNets: whole or where a mask says, from pixels or latents, as diffusers does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests.pack.pipelines import borrow, handle_for, make_image, with_controls
from tests.pack.stages.test_images import FLUX, SDXL, SIDE, by_diffusers, encoded, redraw, some_image, some_mask

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
STEPS, STRENGTH = 3, 0.7
MODES = {"flux": {"canny": 0, "depth": 2}, "sdxl": {"canny": 3, "depth": 1}}
CASES: dict[str, tuple[str, list[str], str]] = {
    "flux": ("tiny-flux-canny", [], "FluxControlNetImg2ImgPipeline"),
    "flux inpaint": ("tiny-flux-canny", [], "FluxControlNetInpaintPipeline"),
    "flux two": ("tiny-flux-canny", ["tiny-flux-depth"], "FluxControlNetImg2ImgPipeline"),
    "flux two inpaint": ("tiny-flux-canny", ["tiny-flux-depth"], "FluxControlNetInpaintPipeline"),
    "flux union": ("tiny-flux-union", [], "FluxControlNetImg2ImgPipeline"),
    "flux union twice inpaint": ("tiny-flux-union", ["tiny-flux-union"], "FluxControlNetInpaintPipeline"),
    "sdxl": ("tiny-sdxl-canny", [], "StableDiffusionXLControlNetImg2ImgPipeline"),
    "sdxl inpaint": ("tiny-sdxl-canny", [], "StableDiffusionXLControlNetInpaintPipeline"),
    "sdxl union inpaint": ("tiny-sdxl-union", [], "StableDiffusionXLControlNetUnionInpaintPipeline"),
}
"""The ControlNets, and diffusers' pipeline for what is asked for."""
CASES_IN_BF16 = ("flux", "flux inpaint", "sdxl inpaint")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KINDS = ("canny", "depth")
"""What the first ControlNet's image shows, and the second one's."""


def model_of(name: str) -> str:
    return "tiny-flux-dev" if "flux" in name else "tiny-sdxl"


def mask_image() -> Image.Image:
    return Image.fromarray((some_mask()[0].numpy() * 255).astype("uint8"))


def diffusers_nets(controlnets: dict[str, Path], names: list[str], dtype: torch.dtype = torch.float32) -> Any:
    """The module, or several as diffusers takes them."""
    kind = "ControlNetUnionModel" if "sdxl-union" in names[0] else "ControlNetModel"
    found = [
        getattr(diffusers, "FluxControlNetModel" if "flux" in name else kind).from_pretrained(
            controlnets[name], torch_dtype=dtype
        )
        for name in names
    ]
    if len(found) == 1:
        return found[0]
    return diffusers.FluxMultiControlNetModel(found) if "flux" in names[0] else found


@pytest.mark.parametrize(
    ("case", "precision"), [*((case, "fp32") for case in CASES), *((case, "bf16") for case in CASES_IN_BF16)]
)
def test_the_image_is_that_of_diffusers(
    tiny_models: dict[str, Path], controlnets: dict[str, Path], case: str, precision: str
) -> None:
    first, more, class_name = CASES[case]
    names, masked, flux = [first, *more], "Inpaint" in class_name, "flux" in first
    arguments: dict[str, Any] = FLUX if flux else SDXL
    drawings = [some_image(seed=9 + index) for index in range(len(names))]
    several: dict[str, list[Any]] = {
        "control_image": [make_image(drawing) for drawing in drawings],
        "controlnet_conditioning_scale": [0.7 for _ in names],
    }
    if "union" in first:
        several["control_mode"] = [MODES["flux" if flux else "sdxl"][kind] for kind in KINDS[: len(names)]]
    elif flux and more:
        several["control_mode"] = [None for _ in names]  # diffusers takes none of them otherwise
    theirs: dict[str, Any] = several if more else {name: values[0] for name, values in several.items()}
    if masked:
        theirs["mask_image"] = mask_image()
    if "Union" not in class_name or masked:
        theirs |= {"width": SIDE, "height": SIDE}
    optional = {} if flux else {"feature_extractor": None, "image_encoder": None}
    expected = by_diffusers(
        tiny_models[model_of(first)],
        class_name,
        DTYPES[precision],
        {"controlnet": diffusers_nets(controlnets, names, DTYPES[precision]), **optional},
        image=make_image(some_image()),
        num_inference_steps=STEPS,
        strength=STRENGTH,
        **theirs,
        **arguments,
    )
    made = redraw(
        tiny_models[model_of(first)],
        encoded(some_image(), some_mask() if masked else None),
        steps=STEPS,
        strength=STRENGTH,
        guidance=arguments["guidance_scale"],
        negative=arguments.get("negative_prompt"),
        controls=[
            {"path": controlnets[name], "image": drawing, "mode": kind}
            for name, drawing, kind in zip(names, drawings, KINDS, strict=False)
        ],
        precision=precision,
    )
    assert np.array_equal(np.asarray(make_image(made)), np.asarray(expected))


def bare(loaded: Any, mask: torch.Tensor | None = None) -> dict[str, Any]:
    """A latent as a stock node makes it: no image beside it."""
    samples = encoded(some_image())(loaded)["samples"]
    return {"samples": samples} if mask is None else {"samples": samples, "noise_mask": mask[:, None]}


def test_flux_begins_with_latents_as_diffusers_would_with_those_of_a_image(
    tiny_models: dict[str, Path], controlnets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, drawing = tiny_models["tiny-flux-dev"], some_image(seed=9)
    made = redraw(
        folder, bare, steps=STEPS, strength=STRENGTH,
        controls=[{"path": controlnets["tiny-flux-canny"], "image": drawing}],
    )  # fmt: skip
    samples = bare(borrow(handle_for(folder)))["samples"]

    def given(pipe: Any, **_: Any) -> torch.Tensor:
        return (samples - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor

    monkeypatch.setattr(diffusers.FluxControlNetImg2ImgPipeline, "_encode_vae_image", given)
    expected = by_diffusers(
        folder, "FluxControlNetImg2ImgPipeline", torch.float32,
        {"controlnet": diffusers_nets(controlnets, ["tiny-flux-canny"])},
        image=make_image(some_image(seed=1)), control_image=make_image(drawing), controlnet_conditioning_scale=0.7,
        width=SIDE, height=SIDE, num_inference_steps=STEPS, strength=STRENGTH, **FLUX,
    )  # fmt: skip
    assert np.array_equal(np.asarray(make_image(made)), np.asarray(expected))


@pytest.mark.parametrize("name", ["tiny-flux-canny", "tiny-sdxl-canny", "tiny-sdxl-union"])
def test_latents_under_a_mask_keep_what_is_not_masked(
    tiny_models: dict[str, Path], controlnets: dict[str, Path], name: str
) -> None:
    from neurolux.stages.prompts.encode import encode
    from neurolux.stages.sample import plan_sample, sample

    base = handle_for(tiny_models[model_of(name)])
    control = {"path": controlnets[name], "mode": "canny"}
    handles = [with_controls(base, {**control, "image": some_image(seed=seed)}) for seed in (9, 10)]
    made = []
    with torch.inference_mode():
        latent = bare(borrow(base), some_mask())
        for handle in handles:
            loaded = borrow(handle)
            request = plan_sample(handle.model, handle.spec.variant, latent, seed=7, steps=2)
            made.append(sample(loaded, request, encode(loaded, "a cat"), None))
    kept = torch.nn.functional.max_pool2d(some_mask()[:, None], 8).expand_as(made[0]) == 0
    for samples in made:
        assert torch.allclose(samples[kept], latent["samples"][kept], atol=1e-5)
    assert not torch.isclose(made[0], made[1])[~kept].all()


def test_sdxl_latents_with_a_controlnet_that_does_nothing_are_redrawn_as_without(
    tiny_models: dict[str, Path], controlnets: dict[str, Path]
) -> None:
    control = {"path": controlnets["tiny-sdxl-canny"], "image": some_image(seed=9), "strength": 0.0}
    without, with_it = (
        redraw(tiny_models["tiny-sdxl"], lambda loaded: bare(loaded, some_mask()), steps=2, controls=controls)
        for controls in ([], [control])
    )
    assert torch.equal(without, with_it)


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_a_control_image_stays_over_what_it_was_drawn_from(
    tiny_models: dict[str, Path], controlnets: dict[str, Path], fit: str
) -> None:
    """The photo of 150x100 is padded to 160x112 or stretched to 144x96 for the model; so must be what guides it."""
    photo = some_image(150, 100)
    fitted = make_image(encoded(photo, None, fit)(borrow(handle_for(tiny_models["tiny-flux-dev"])))["image"])
    expected = by_diffusers(
        tiny_models["tiny-flux-dev"],
        "FluxControlNetImg2ImgPipeline",
        torch.float32,
        {"controlnet": diffusers_nets(controlnets, ["tiny-flux-canny"])},
        image=fitted,
        control_image=fitted,
        controlnet_conditioning_scale=0.7,
        width=fitted.width,
        height=fitted.height,
        num_inference_steps=2,
        strength=1.0,
        **FLUX,
    )
    control = {"path": controlnets["tiny-flux-canny"], "image": photo}
    made = redraw(tiny_models["tiny-flux-dev"], encoded(photo, None, fit), steps=2, controls=[control])
    assert np.array_equal(np.asarray(make_image(made)), np.asarray(expected))


def test_edges_are_looked_for_where_the_image_is_redrawn(tiny_models: dict[str, Path]) -> None:
    from neurolux.stages.latent import fitted_to_latent

    photo = some_image(150, 100)
    latent = encoded(photo, None, "pad")(borrow(handle_for(tiny_models["tiny-sdxl"])))
    assert torch.allclose(fitted_to_latent(photo, latent), latent["image"], atol=0.5 / 255)
    smaller = torch.nn.functional.interpolate(photo.movedim(-1, 1), (50, 75), mode="area").movedim(1, -1)
    assert (fitted_to_latent(smaller, latent) - latent["image"]).abs().mean() < 0.01
    other = some_image(100, 100)  # of other proportions: cut around its middle
    assert torch.equal(fitted_to_latent(other, latent)[0, :, 0], fitted_to_latent(other[:, 15:85], latent)[0, :, 0])
    flipped = {**latent, "samples": latent["samples"].flip(-1)}
    assert not torch.allclose(fitted_to_latent(photo, flipped), latent["image"], atol=0.01)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tiny-flux-fill", "tiny-flux-fill takes no ControlNet: .* redraw the masked part with flux-dev or sdxl-base"),
        ("tiny-flux-kontext", "tiny-flux-kontext takes no ControlNet: .*image to image. with flux-dev or sdxl-base"),
        ("tiny-sd15", "tiny-sd15 takes no ControlNet: there are some for flux, qwen-image, sdxl models"),
    ],
)
def test_a_model_that_no_controlnet_guides_says_what_to_do_instead(
    tiny_models: dict[str, Path], controlnets: dict[str, Path], model: str, message: str
) -> None:
    from neurolux.errors import InvalidParameter

    handle = handle_for(tiny_models[model])
    control = {"path": controlnets["tiny-flux-canny"], "image": some_image()}
    with pytest.raises(InvalidParameter, match=message) as error:
        with_controls(handle, control)
    assert error.value.field == "controlnet"
