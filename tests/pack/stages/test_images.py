"""Images made of images: as diffusers' own pipelines make them, bit for bit, and put back where they came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests.pack.comfy_server import ComfyServer
from tests.pack.graphs import node, text_to_image
from tests.pack.pipelines import borrow, handle_for, make_image, with_controls

if TYPE_CHECKING:
    from neurolux.catalog.models import Model

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
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
CASES_IN_BF16 = ("flux image to image", "flux fill", "sdxl image to image", "sdxl inpaint")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture
def model(tiny_models: dict[str, Path]) -> Model:
    """A model whose sides are multiples of 16 from 64 to 2048."""
    from neurolux.library.folder_models import folder_model

    found = folder_model(tiny_models["tiny-flux-dev"])
    assert found is not None
    return found


def some_image(width: int = SIDE, height: int = SIDE, seed: int = 3) -> torch.Tensor:
    """A smooth image of 8-bit colours, (1, H, W, 3)."""
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
    controls: Sequence[dict[str, Any]] = (),
    **choices: Any,
) -> torch.Tensor:
    """The pack's images, decoded; ``latent_of`` makes the latent with the loaded pipeline."""
    from neurolux.stages.decode import decode
    from neurolux.stages.prompts.encode import encode
    from neurolux.stages.sample import plan_sample, sample

    handle = handle_for(folder, **choices)
    loaded = borrow(with_controls(handle, *controls))
    with torch.inference_mode():  # as ComfyUI runs nodes
        positive = encode(loaded, PROMPT)
        against = encode(loaded, negative) if negative is not None else None
        request = plan_sample(handle.model, handle.spec.variant, latent_of(loaded), seed, steps, guidance, strength)
        samples = sample(loaded, request, positive, against)
        return decode(loaded, samples)


def encoded(images: torch.Tensor, mask: torch.Tensor | None = None, fit: str = "crop", count: int = 1) -> Any:
    """What Encode Image does, once there is a loaded pipeline."""

    def make(loaded: Any) -> dict[str, Any]:
        from neurolux.images.frames import plan_frame
        from neurolux.stages.image_encoding import encode_images

        frame = plan_frame(loaded.model, (images.shape[2], images.shape[1]), fit)
        return encode_images(loaded, images, mask, frame, count)

    return make


def by_diffusers(
    folder: Path, class_name: str, dtype: torch.dtype, parts: dict[str, Any] | None = None, **arguments: Any
) -> Image.Image:
    """What the plain pipeline makes, with more ``parts``; its weights copied into RAM, see test_parity.py."""
    pipe = getattr(diffusers, class_name).from_pretrained(folder, dtype=dtype, **(parts or {}))
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            for weight in part.parameters():
                weight.data = weight.data.clone()
    pipe.set_progress_bar_config(disable=True)
    return pipe(prompt=PROMPT, generator=torch.Generator("cpu").manual_seed(7), **arguments).images[0]


@pytest.mark.parametrize(
    ("case", "precision"), [*((case, "fp32") for case in CASES), *((case, "bf16") for case in CASES_IN_BF16)]
)
def test_the_image_is_that_of_diffusers(tiny_models: dict[str, Path], case: str, precision: str) -> None:
    folder, class_name, arguments = CASES[case]
    masked = "Inpaint" in class_name or "Fill" in class_name
    theirs: dict[str, Any] = {"image": make_image(some_image())}
    if masked:
        theirs["mask_image"] = Image.fromarray((some_mask()[0].numpy() * 255).astype("uint8"))
    if class_name.startswith("Flux") or masked:
        theirs |= {"width": SIDE, "height": SIDE}
    if "Kontext" in class_name:
        theirs["max_area"] = SIDE * SIDE
    expected = by_diffusers(tiny_models[folder], class_name, DTYPES[precision], **theirs, **arguments)
    made = redraw(
        tiny_models[folder],
        encoded(some_image(), some_mask() if masked else None),
        steps=arguments["num_inference_steps"],
        strength=arguments.get("strength", 1.0),
        guidance=arguments["guidance_scale"],
        negative=arguments.get("negative_prompt"),
        precision=precision,
        offload="none",
    )
    assert np.array_equal(np.asarray(make_image(made)), np.asarray(expected))


@pytest.mark.parametrize("offload", ["stream", "sequential"])
@pytest.mark.parametrize("name", ["tiny-flux-dev", "tiny-sdxl"])
def test_where_weights_live_does_not_change_the_image(tiny_models: dict[str, Path], name: str, offload: str) -> None:
    made = [
        redraw(tiny_models[name], encoded(some_image(), some_mask()), steps=3, strength=0.7, offload=where)
        for where in ("none", offload)
    ]
    assert torch.equal(made[0], made[1])


def test_a_batch_is_its_images_one_by_one(tiny_models: dict[str, Path]) -> None:
    first, second = some_image(), some_image(seed=4)
    together = redraw(tiny_models["tiny-flux-dev"], encoded(torch.cat([first, second])), steps=2, strength=0.9)
    alone = redraw(tiny_models["tiny-flux-dev"], encoded(second), steps=2, strength=0.9, seed=8)
    assert torch.equal(together[1:], alone)
    several = redraw(tiny_models["tiny-flux-dev"], encoded(second, count=2), steps=2, strength=0.9)
    assert torch.equal(several[1:], alone)


def test_a_latent_that_was_changed_since_is_taken_itself(tiny_models: dict[str, Path]) -> None:
    def turned(loaded: Any) -> dict[str, Any]:
        latent = encoded(some_image())(loaded)
        return {**latent, "samples": latent["samples"].flip(-1)}  # as the stock Flip Latent does

    def bare(loaded: Any) -> dict[str, Any]:
        return {"samples": turned(loaded)["samples"]}

    folder = tiny_models["tiny-sdxl"]
    made = [redraw(folder, latent, steps=4, strength=0.5) for latent in (turned, bare, encoded(some_image()))]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("name", ["tiny-flux-dev", "tiny-sdxl"])
def test_a_stock_latent_with_a_stock_mask_is_inpainted(tiny_models: dict[str, Path], name: str) -> None:
    def stock(loaded: Any) -> dict[str, Any]:
        return {"samples": encoded(some_image())(loaded)["samples"], "noise_mask": some_mask()[:, None]}

    made = redraw(tiny_models[name], stock, steps=2)
    plain = redraw(tiny_models[name], lambda loaded: {"samples": stock(loaded)["samples"]}, steps=2, strength=0.5)
    assert made.shape == plain.shape
    assert not torch.equal(made, plain)


@pytest.mark.parametrize(
    ("name", "changes", "field", "message"),
    [
        ("tiny-sdxl-lightning", {"strength": 0.2}, "strength", r"0\.2 of 4 steps leaves no step.* at least 0\.25"),
        ("tiny-flux-dev", {"strength": 0.0}, "strength", "strength 0 redraws nothing"),
        ("tiny-flux-dev", {"strength": 1.5}, "strength", "1.5 is outside 0 to 1"),
        ("tiny-flux-dev", {"strength": 0.5, "empty": True}, "strength", "the latent is empty; link Encode Image"),
        ("tiny-flux-fill", {}, "mask", "tiny-flux-fill fills in a masked part.* link Encode Image with a mask"),
        ("tiny-flux-fill", {"empty": True}, "model", "generates none from a prompt alone"),
        ("tiny-flux-kontext", {"masked": True}, "mask", "takes no mask; link Encode Image without one"),
        ("tiny-flux-kontext", {"strength": 0.5}, "strength", "has no strength; leave strength at 1"),
    ],
)
def test_what_cannot_be_redrawn_is_explained(
    tiny_models: dict[str, Path], name: str, changes: dict[str, Any], field: str, message: str
) -> None:
    from neurolux.errors import InvalidParameter

    empty, masked = changes.pop("empty", False), changes.pop("masked", False)
    latent = encoded(some_image(), some_mask() if masked else None)
    if empty:
        latent = lambda _: {"samples": torch.zeros(1, 4, 16, 16)}  # noqa: E731
    with pytest.raises(InvalidParameter, match=message) as error:
        redraw(tiny_models[name], latent, steps=4, **changes)
    assert error.value.field == field


FRAMES: dict[str, tuple[tuple[int, int], tuple[str, int, int], tuple[int, int], tuple[int, int]]] = {
    "as it is": ((128, 96), ("crop", 0, 0), (128, 96), (128, 96)),
    "cut": ((150, 100), ("crop", 0, 0), (144, 96), (144, 96)),
    "padded": ((150, 100), ("pad", 0, 0), (160, 112), (150, 100)),
    "stretched": ((150, 100), ("stretch", 0, 0), (144, 96), (144, 96)),
    "too large": ((4000, 3000), ("pad", 0, 0), (224, 160), (209, 157)),
    "too small": ((20, 40), ("crop", 0, 0), (64, 128), (64, 128)),
    "a size of one's own": ((150, 100), ("crop", 128, 128), (128, 128), (128, 128)),
    "padded to a size of one's own": ((150, 100), ("pad", 128, 128), (128, 128), (128, 85)),
    "a thin line, padded": ((6000, 1), ("pad", 0, 0), (2048, 64), (2048, 1)),
    "a width of one's own": ((150, 100), ("crop", 304, 0), (304, 192), (304, 192)),
}
"""The image's size, fit, width and height; the size that the model works in, and the image's size in it."""


@pytest.mark.parametrize("case", FRAMES)
def test_images_are_fitted_to_the_model(model: Model, case: str) -> None:
    from neurolux.images.frames import extent, fitted_image, plan_frame

    given, asked, size, inside = FRAMES[case]
    frame = plan_frame(model, given, *asked)
    assert (frame.size, extent(frame.place)) == (size, inside)
    assert (frame.summary() is None) == (case == "as it is")
    if case == "too large":
        assert frame.summary() == "the image of 4000x3000 was scaled to 209x157, padded to 224x160 to suit the model"
        return
    fitted = fitted_image(some_image(*given), frame)
    assert fitted.shape == (1, size[1], size[0], 3)
    left, top, right, bottom = frame.place
    if case == "padded":
        assert torch.equal(fitted[:, top:bottom, left:right], some_image(*given))
        assert torch.equal(fitted[:, top:bottom, 0], fitted[:, top:bottom, left])


def test_a_image_that_does_not_suit_is_refused_where_that_is_wanted(model: Model) -> None:
    from neurolux.errors import InvalidParameter
    from neurolux.images.frames import plan_frame

    plan_frame(model, (128, 96), "error")
    with pytest.raises(InvalidParameter, match="the image is 130x96 and tiny-flux-dev would work in 128x96; send it"):
        plan_frame(model, (130, 96), "error")


@pytest.mark.parametrize(
    ("size", "other", "same"),
    [
        ((128, 96), (1000, 750), True), ((1000, 750), (128, 96), True), ((150, 100), (144, 96), True),
        ((10, 1000), (1, 101), True), ((1000, 10), (101, 1), True),  # a side rounded to a pixel
        ((10, 1000), (1, 120), False), ((1000, 10), (120, 1), False), ((128, 96), (96, 128), False),
        ((128, 97), (128, 98), False),
    ],
)  # fmt: skip
def test_proportions_are_the_same_up_to_a_rounded_side(
    size: tuple[int, int], other: tuple[int, int], same: bool
) -> None:
    from neurolux.images.frames import same_proportions

    assert same_proportions(size, other) == same


def test_a_feather_goes_inwards_and_spares_the_border() -> None:
    from neurolux.images.masks import feathered

    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 32:] = 1
    soft = feathered(mask, 4)
    assert not soft[mask == 0].any()
    assert (soft[mask > 0] > 0).all()
    assert torch.allclose(soft[0, 16:21, 50], torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]))
    assert soft[0, 30, 63] == 1  # at the image's own border nothing is blended
    assert feathered(mask, 100).max() == 1


def test_the_mask_covers_whole_cells_and_what_is_put_back_does_not(tiny_models: dict[str, Path]) -> None:
    from neurolux.stages.latent import put_back

    photo = some_image(150, 100)
    mask = torch.zeros(1, 100, 150)
    mask[:, 41:60, 33:71] = 1
    latent = encoded(photo, mask, "pad")(borrow(handle_for(tiny_models["tiny-sdxl"])))
    cells = latent["noise_mask"]
    assert cells.shape == (1, 1, 112, 160)
    assert torch.equal(cells[0, 0, ::8, ::8].repeat_interleave(8, 0).repeat_interleave(8, 1), cells[0, 0])
    finished = torch.zeros(1, 112, 160, 3)
    result = put_back(finished, latent["image_origin"])
    assert torch.equal(result[mask == 0], photo[mask == 0])
    assert not result[mask > 0].any()


def test_interrupt_in_the_middle_and_progress_through_comfyui(comfyui: ComfyServer) -> None:
    graph = text_to_image("tiny-sdxl", steps=8, count=1)
    graph["image"] = node("EmptyImage", width=128, height=128, batch_size=1, color=0x336699)
    graph["latent"] = node(
        "NeuroLuxEncodeImage", pipeline=["load", 0], image=["image", 0], fit="crop", width=0, height=0, batch_size=2
    )
    graph["sample"]["inputs"]["strength"] = 0.5
    whole = comfyui.run_watched(graph)
    assert whole.status == "success"
    steps = [(data["value"], data["max"]) for kind, data in whole.events if kind == "progress"]
    assert steps[-8:] == [(step, 8) for step in range(1, 9)]
    assert len(whole.previews) == 8
    graph["sample"]["inputs"]["seed"] = 99
    stopped = comfyui.run_watched(graph, interrupt_at=3)
    assert stopped.status == "error"
    assert stopped.message("execution_interrupted")["node_id"] == "sample"
    graph["sample"]["inputs"]["seed"] = 7
    assert comfyui.files(comfyui.run(graph))[0][-2000:] == comfyui.files(comfyui.run(graph))[0][-2000:]


@pytest.mark.parametrize(
    ("folder", "task"),
    [
        ("tiny-flux-dev", "image-to-image"),
        ("tiny-flux-dev", "inpaint"),
        ("tiny-sdxl", "image-to-image"),
        ("tiny-flux-kontext", "edit"),
    ],
)
def test_memory_is_asked_for_to_encode_the_image_as_well(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, folder: str, task: str
) -> None:
    """The pipeline encodes the image inside its call: with the denoiser's memory alone it would run out."""
    from neurolux.loading.working_memory import decoding_memory, sampling_memory
    from neurolux.stages.prompts.encode import encode
    from neurolux.stages.sample import plan_sample, sample

    handle = handle_for(tiny_models[folder])
    side = 176
    image = some_image(side, side)
    mask = torch.ones(1, side, side) if task == "inpaint" else None
    with torch.inference_mode():
        loaded = borrow(handle)
        latent = encoded(image, mask)(loaded)
        positive = encode(loaded, PROMPT)
        request = plan_sample(handle.model, None, latent, 7, 2, -1.0, 1.0 if task == "edit" else 0.5)
        assert (request.task, request.width, request.height) == (task, side, side)
        asked: list[tuple[list[str], int]] = []
        stage = loaded.placement.stage

        def recorded(names: Sequence[str], needed: int) -> Any:
            asked.append((list(names), needed))
            return stage(names, needed)

        monkeypatch.setattr(loaded.placement, "stage", recorded)
        sample(loaded, request, positive, None)
        (names, needed) = asked[-1]
        assert names == [loaded.denoiser_name, "vae"]
        assert needed >= decoding_memory(loaded, side, side)
        assert needed >= sampling_memory(loaded, side, side)
        if task == "edit":  # it attends to the image to edit, of up to a megapixel, as well as to what it draws
            assert needed >= sampling_memory(loaded, side, side + 1024 * 1024 // side)
