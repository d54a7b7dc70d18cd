"""What stock nodes do to a latent before Sample, Decode and Put Back: followed, or refused with the reason."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from tests.pack.comfy_server import ComfyServer
from tests.pack.graphs import Graph, node, text_to_image
from tests.pack.pipelines import handle_for

MODEL = "tiny-sdxl"
LATENT = ["latent", 0]


def with_latent(added: Graph, *, model: str = MODEL, steps: int = 2, **choices: Any) -> Graph:
    """A prompt to an image; ``added`` come before Sample's latent, the last of them is ``set``."""
    graph = text_to_image(model, steps=steps, **choices) | added
    graph["sample"]["inputs"]["latent"] = ["set", 0]
    return graph


def encoded(**values: Any) -> Graph:
    """An image of stripes and colours, encoded as ``latent``."""
    return {
        "red": node("EmptyImage", width=128, height=64, batch_size=1, color=0xC03020),
        "blue": node("EmptyImage", width=128, height=64, batch_size=1, color=0x2040D0),
        "image": node("ImageStitch", image1=["red", 0], image2=["blue", 0], direction="down", match_image_size=True,
                      spacing_width=0, spacing_color="white"),
        "latent": node("NeuroLuxEncodeImage", pipeline=["load", 0], image=["image", 0],
                       **{"fit": "crop", "width": 0, "height": 0, "batch_size": 1, **values}),
    }  # fmt: skip


PLACES: dict[str, tuple[Graph, list[int]]] = {
    "latent from batch": ({"set": node("LatentFromBatch", samples=LATENT, batch_index=2, length=1)}, [2]),
    "some of a batch": ({"set": node("LatentFromBatch", samples=LATENT, batch_index=1, length=2)}, [1, 2]),
    "rebatch": ({"set": node("RebatchLatents", latents=LATENT, batch_size=1)}, [0, 1, 2]),
    "rebatch by two": ({"set": node("RebatchLatents", latents=LATENT, batch_size=2)}, [0, 1, 2]),
    "fixed seed": ({"set": node("LatentBatchSeedBehavior", samples=LATENT, seed_behavior="fixed")}, [0, 0, 0]),
    "random seed": ({"set": node("LatentBatchSeedBehavior", samples=LATENT, seed_behavior="random")}, [0, 1, 2]),
    "one of a batch, twice": (
        {"one": node("LatentFromBatch", samples=LATENT, batch_index=1, length=1),
         "set": node("RepeatLatentBatch", samples=["one", 0], amount=2)},
        [1, 2],
    ),
    "two of a batch, in another order": (
        {"first": node("LatentFromBatch", samples=LATENT, batch_index=2, length=1),
         "second": node("LatentFromBatch", samples=LATENT, batch_index=0, length=1),
         "set": node("LatentBatch", samples1=["first", 0], samples2=["second", 0])},
        [2, 0],
    ),
}  # fmt: skip
"""Nodes after a latent of three images, and which of the three images they are."""


@pytest.mark.parametrize("start", ["empty", "image"])
@pytest.mark.parametrize("case", PLACES)
def test_an_image_keeps_its_noise_when_its_batch_changes(comfyui: ComfyServer, case: str, start: str) -> None:
    added, places = PLACES[case]
    whole, changed = text_to_image(MODEL, steps=2, count=3), with_latent(added, count=3)
    if start == "image":
        for graph in (whole, changed):
            graph |= encoded(batch_size=3)
            graph["sample"]["inputs"] |= {"strength": 0.5, "steps": 4}
        if case.startswith("rebatch"):  # it keeps nothing but samples: the latent is redrawn, not the image
            whole["bare"] = node("LatentMultiply", samples=LATENT, multiplier=1.0)
            whole["sample"]["inputs"]["latent"] = ["bare", 0]
    expected = comfyui.images(comfyui.run(whole))
    run = comfyui.run(changed)
    made = comfyui.images(run)
    assert len({image.tobytes() for image in expected}) == 3
    if case.startswith("rebatch") and start == "image":
        assert len({image.tobytes() for image in made}) == 3
        return
    assert [image.tobytes() for image in made] == [expected[place].tobytes() for place in places]


FOREIGN: dict[str, tuple[Graph, str]] = {
    "FLUX": ({"set": node("EmptySD3LatentImage", width=128, height=128, batch_size=1)},
             r"16 channels \(the latent space of .*\bFLUX\b.*\) and tiny-sdxl takes 4 channels \(.* SDXL"),
    "pixels": ({"set": node("EmptyChromaRadianceLatentImage", width=128, height=128, batch_size=1)},
               r"3 channels \(an image, not a latent\)"),
    "FLUX.2": ({"set": node("EmptyFlux2LatentImage", width=128, height=128, batch_size=1)},
               r"128 channels \(the latent space of FLUX.2\)"),
    "video": ({"set": node("EmptyHunyuanLatentVideo", width=128, height=128, length=5, batch_size=1)}, "the shape"),
    "sound": ({"set": node("EmptyLatentAudio", seconds=1.0, batch_size=1)}, "the shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_a_latent_of_another_space_is_not_decoded(comfyui: ComfyServer, case: str) -> None:
    added, message = FOREIGN[case]
    graph = text_to_image(MODEL, steps=2) | added
    graph["decode"]["inputs"]["latent"] = ["set", 0]
    run = comfyui.run(graph)
    assert run.status == "error"
    assert run.error_class == "InvalidParameter"
    assert re.search(message, run.error_text), run.error_text


@pytest.mark.parametrize("case", [name for name in FOREIGN if not name.startswith("FLUX")])
def test_nor_is_it_sampled_from(comfyui: ComfyServer, case: str) -> None:
    run = comfyui.run(with_latent(FOREIGN[case][0]))
    assert run.status == "error"
    assert run.error_class == "InvalidParameter"
    assert re.search("link an Empty Latent", run.error_text), run.error_text


@pytest.mark.parametrize(("channels", "family"), [(3, "an image"), (8, "not known"), (16, "FLUX"), (4, "SD|Diffusion")])
@pytest.mark.usefixtures("comfy_modules")
def test_both_spaces_are_named(tiny_models: dict[str, Path], channels: int, family: str) -> None:
    from neurolux.errors import InvalidParameter
    from neurolux.stages.latent import check_space

    model = handle_for(tiny_models["tiny-flux-dev"]).model
    expected = 16 if channels != 16 else 4
    with pytest.raises(InvalidParameter, match=rf"{channels} channels \(.*{family}.* takes {expected} channels"):
        check_space(torch.zeros(1, channels, 16, 16), expected, model)


KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"glow": 1}, "carries 'glow', which is not known here"),
    "sound": ({"type": "audio"}, "holds sound"),
    "unknown type": ({"type": "smell"}, "type smell"),
    "too few places": ({"batch_index": [1, 2]}, r"has 1 images and 2 places in the batch \(batch_index\)"),
    "another scale": ({"downscale_ratio_spacial": 16}, "16 pixels to a latent pixel and the model takes 8"),
}


@pytest.mark.parametrize("case", KEYS)
def test_what_else_a_latent_carries_is_read_or_refused(case: str) -> None:
    from neurolux.errors import InvalidParameter
    from neurolux.stages.tasks import ImageSource

    more, message = KEYS[case]
    with pytest.raises(InvalidParameter, match=message):
        ImageSource.of({"samples": torch.ones(1, 4, 16, 16), **more}, 8)


UNFIT = {
    "another space": (torch.ones(1, 16, 16, 16), r"16 channels \(.*FLUX.* takes 4 channels"),
    "not finite": (torch.full((1, 4, 16, 16), torch.nan), "the latents given to Sample"),
}


@pytest.mark.parametrize("case", UNFIT)
@pytest.mark.usefixtures("comfy_modules")
def test_latents_that_do_not_fit_are_not_redrawn(tiny_models: dict[str, Path], case: str) -> None:
    from neurolux.errors import InvalidParameter, NotFinite
    from neurolux.stages.tasks import ImageSource

    folder = tiny_models["tiny-sdxl"]
    loaded: Any = SimpleNamespace(
        model=handle_for(folder).model, pipe=SimpleNamespace(vae=AutoencoderKL.from_pretrained(folder / "vae"))
    )
    samples, message = UNFIT[case]
    with pytest.raises((InvalidParameter, NotFinite), match=message):
        ImageSource.of({"samples": samples}, 8).arguments(loaded, "image-to-image", 0.5, 0)


def test_an_empty_latent_of_another_scale_keeps_its_size_in_pixels() -> None:
    from neurolux.stages.tasks import ImageSource

    source = ImageSource.of({"samples": torch.zeros(2, 128, 8, 4), "downscale_ratio_spacial": 16}, 8)
    assert source.samples.shape == (2, 128, 16, 8)


# Put Back

HALF: Graph = {
    "ones": node("SolidMask", value=1.0, width=64, height=128),
    "zeros": node("SolidMask", value=0.0, width=128, height=128),
    "mask": node(
        "MaskComposite", destination=["zeros", 0], source=["ones", 0], x=0, y=0, operation="add",
    ),
}  # fmt: skip
"""The left half."""


def put_back(added: Graph, images: str = "decode", latent: str = "set", **values: Any) -> Graph:
    """Encode, change, sample, decode and put back."""
    graph = with_latent(encoded(**values) | added)
    graph["back"] = node("NeuroLuxPutBack", images=[images, 0], latent=[latent, 0])
    graph["result"]["inputs"]["images"] = ["back", 0]
    graph["original"] = node(
        "NeuroLuxResult", images=["image", 0], name="original", output_format="png", quality=90,
        filename_prefix="test/original",
    )  # fmt: skip
    return graph


def pixels(images: list[Image.Image]) -> np.ndarray:
    """All, in an array."""
    return np.stack([np.asarray(image) for image in images])


@pytest.mark.parametrize("fit", [{}, {"width": 64, "height": 64}, {"fit": "pad", "width": 192, "height": 128}])
def test_a_mask_that_was_set_since_is_put_back_by(comfyui: ComfyServer, fit: dict[str, Any]) -> None:
    added = {**HALF, "set": node("SetLatentNoiseMask", samples=LATENT, mask=["mask", 0])}
    if fit:  # a stock mask is as large as the model's image
        added["set"]["inputs"]["mask"] = ["fitted", 0]
        added["fitted"] = node("CropMask", mask=["mask", 0], x=0, y=0, width=128, height=128)
    run = comfyui.run(put_back(added, **fit))
    original, made = pixels(comfyui.images(run, "original"))[0], pixels(comfyui.images(run))[0]
    assert made.shape == original.shape
    kept = slice(100, None)
    assert np.array_equal(made[:, kept], original[:, kept])
    assert not np.array_equal(made[:, :32], original[:, :32])


def test_an_image_of_a_batch_is_put_back_into_its_own(comfyui: ComfyServer) -> None:
    added = {"set": node("LatentFromBatch", samples=LATENT, batch_index=1, length=1)}
    run = comfyui.run(put_back(added, batch_size=2))
    assert len(comfyui.images(run)) == 1


def test_a_larger_image_is_scaled_back_and_one_of_other_proportions_refused(comfyui: ComfyServer) -> None:
    for width, height in ((256, 256), (64, 64)):
        added = {
            "set": node("RepeatLatentBatch", samples=LATENT, amount=1),
            "larger": node(
                "ImageScale", image=["image", 0], upscale_method="bilinear", width=width, height=height,
                crop="disabled",
            ),
        }  # fmt: skip
        run = comfyui.run(put_back(added, "larger"))
        made, original = pixels(comfyui.images(run))[0], pixels(comfyui.images(run, "original"))[0]
        assert made.shape == original.shape
        for rows in (slice(0, 60), slice(68, 128)):  # where the colours meet they run into each other
            assert np.abs(made[rows].astype(int) - original[rows].astype(int)).max() <= 3
        assert run.outputs["back"]["warnings"] == [
            f"the images of {width}x{height} were scaled to 128x128, as they were encoded"
        ]
    added["larger"]["inputs"]["height"] = 128
    run = comfyui.run(put_back(added, "larger"))
    assert run.error_class == "InvalidParameter"
    assert "the images are 64x128 and the latent is of 128x128: the proportions differ" in run.error_text


def test_more_images_than_originals_are_matched_or_refused(comfyui: ComfyServer) -> None:
    added = {
        "set": node("RepeatLatentBatch", samples=LATENT, amount=1),
        "one": node("ImageFromBatch", image=["decode", 0], batch_index=0, length=1),
    }
    run = comfyui.run(put_back(added, "one", batch_size=2))
    assert "there are 1 images and the latent holds 2 originals" in run.error_text


# Masks and images


def test_an_image_with_two_masks_is_encoded_for_each(comfyui: ComfyServer) -> None:
    added = {
        **HALF,
        "other": node("InvertMask", mask=["mask", 0]),
        "first image": node("MaskToImage", mask=["mask", 0]),
        "second image": node("MaskToImage", mask=["other", 0]),
        "both": node("ImageBatch", image1=["first image", 0], image2=["second image", 0]),
        "masks": node("ImageToMask", image=["both", 0], channel="red"),
    }
    graph = put_back(added, latent="latent")
    graph["sample"]["inputs"]["latent"] = LATENT
    graph["latent"]["inputs"]["mask"] = ["masks", 0]
    run = comfyui.run(graph)
    original, made = pixels(comfyui.images(run, "original"))[0], pixels(comfyui.images(run))
    assert len(made) == 2
    assert np.array_equal(made[0][:, 64:], original[:, 64:])
    assert np.array_equal(made[1][:, :64], original[:, :64])
    assert not np.array_equal(made[0], made[1])

    stock = with_latent(encoded() | added | {"set": node("SetLatentNoiseMask", samples=LATENT, mask=["masks", 0])})
    run = comfyui.run(stock)
    assert run.outputs["sample"]["warnings"] == ["the latent has 2 masks and 1 image: only the first is used"]
