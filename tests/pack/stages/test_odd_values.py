"""Values that broken or foreign nodes put on IMAGE, MASK, LATENT and CONDITIONING: taken as meant, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from neurolux.errors import InvalidParameter, NotFinite

pytestmark = pytest.mark.usefixtures("comfy_modules")
NAN = float("nan")
IMAGE = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(1))
MASK = torch.zeros(1, 16, 16)
MASK[:, 4:8, 4:8] = 1
IMAGES: dict[str, tuple[Any, str]] = {
    "not a number": (torch.full_like(IMAGE, NAN), "the images hold values that are not numbers"),
    "infinite": (IMAGE / 0, "the image has values from .* to inf"),
    "none": (IMAGE[:0], "there is no image: the shape is"),
    "no rows": (IMAGE[:, :0], "there is no image"),
    "without a batch": (IMAGE[0], "the image has the shape"),
    "too many dimensions": (IMAGE[None], "the image has the shape"),
    "8 bits": ((IMAGE * 255).to(torch.uint8), "the image holds uint8 values, and it takes fractions from 0 to 1"),
    "integers": ((IMAGE * 255).long(), "the image holds int64 values"),
    "truth": (IMAGE > 0.5, "the image holds bool values"),
    "0 to 255": (IMAGE * 255, "the image has values from .* it takes 0 to 1; scale them"),
    "-1 to 1": (IMAGE * 2 - 1, "the image has values from -"),
    "a list": ([IMAGE], r"the image is no tensor \(list\)"),
    "nothing": (None, r"the image is no tensor \(NoneType\)"),
}
MASKS: dict[str, tuple[Any, str]] = {
    "not a number": (MASK * NAN, "the masks hold values that are not numbers"),
    "partly not a number": (torch.where(MASK > 0, NAN, MASK), "the masks hold values that are not numbers"),
    "none": (MASK[:0], "there is no mask: the shape is"),
    "no rows": (MASK[:, :0], "there is no mask"),
    "colours": (IMAGE, r"the mask has the shape \(1, 16, 16, 3\), and masks are \(batch, height, width\)"),
    "five dimensions": (MASK[None, None], "the mask has the shape"),
    "8 bits": ((MASK * 255).to(torch.uint8), "the mask holds uint8 values"),
    "0 to 255": (MASK * 255, "the mask has values from 0 to 255"),
    "-1 to 1": (MASK * 2 - 1, "the mask has values from -1 to 1"),
    "a list": ([MASK], r"the mask is no tensor \(list\)"),
}
MEANT = {
    "as it should be": MASK, "without a batch": MASK[0], "with a channel": MASK[:, None],
    "with a channel at the end": MASK[..., None], "truth": MASK > 0, "half precision": MASK.half(),
    "double precision": MASK.double(),
}  # fmt: skip
SAMPLES = torch.zeros(1, 4, 16, 16)
LATENTS: dict[str, tuple[Any, str]] = {
    "nothing": (None, "the latent holds no samples"),
    "a list": ([SAMPLES], "the latent holds no samples"),
    "no samples": ({"noise_mask": MASK}, "the latent holds no samples"),
    "none": ({"samples": SAMPLES[:0]}, "the latent is empty: its shape is"),
    "no columns": ({"samples": SAMPLES[..., :0]}, "the latent is empty"),
    "integers": ({"samples": SAMPLES.long()}, "the latent holds int64 values"),
    "a place that is a word": ({"samples": SAMPLES, "batch_index": ["a"]}, r"batch_index\) are \['a'\]"),
    "a place that is no list": ({"samples": SAMPLES, "batch_index": 2}, r"batch_index\) are 2"),
    "a place before the first": ({"samples": SAMPLES, "batch_index": [-3]}, r"batch_index\) are \[-3\]"),
    "a mask of nothing": ({"samples": SAMPLES, "noise_mask": MASK * NAN}, "the masks hold values that are not numbers"),
    "no mask in the batch": ({"samples": SAMPLES, "noise_mask": MASK[:0]}, "there is no mask"),
    "a mask of a video": ({"samples": SAMPLES, "noise_mask": MASK[None, None]}, "the mask has the shape"),
    "a mask that is a list": ({"samples": SAMPLES, "noise_mask": [1]}, "the mask is no tensor"),
}
EMBEDS, POOLED = torch.zeros(1, 77, 64), {"pooled_output": torch.zeros(1, 32)}
CONDITIONINGS: dict[str, tuple[Any, str]] = {
    "nothing": (None, r"the positive conditioning is not one \(NoneType\); link Encode Prompt"),
    "a tensor": (EMBEDS, r"is not one \(Tensor\)"),
    "no extras": ([[EMBEDS]], r"is not one \(list\)"),
    "extras that are a list": ([[EMBEDS, []]], "is not one"),
    "another encoder's": ([[EMBEDS[..., :5], POOLED]], "is 5 wide and sdxl-base takes 64"),
    "no embeddings": ([[None, POOLED]], "is not one"),
    "no part": ([], "has 0 parts"),
    "no tokens": ([[EMBEDS[:, :0], POOLED]], r"has the shape \(1, 0, 64\)"),
    "no pooled embeddings": ([[EMBEDS, {}]], r"has no pooled embeddings \(pooled_output\) and .* takes \(1, 32\)"),
    "pooled embeddings of another encoder": (
        [[EMBEDS, {"pooled_output": torch.zeros(1, 5)}]],
        r"pooled embeddings of the shape \(1, 5\)",
    ),
    "pooled embeddings that are a list": ([[EMBEDS, {"pooled_output": [1]}]], "has no pooled embeddings"),
    "not numbers": ([[EMBEDS * NAN, POOLED]], "the positive conditioning's embeddings hold values that are not"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_what_is_no_image_is_refused(kind: str) -> None:
    from neurolux.images.pixels import rgb

    value, message = IMAGES[kind]
    with pytest.raises((InvalidParameter, NotFinite), match=message):
        rgb(value)


@pytest.mark.parametrize("kind", MASKS)
def test_what_is_no_mask_is_refused(kind: str) -> None:
    from neurolux.images.masks import mask_from

    value, message = MASKS[kind]
    with pytest.raises((InvalidParameter, NotFinite), match=message):
        mask_from(None, value, 0)


@pytest.mark.parametrize("kind", MEANT)
def test_a_mask_in_another_form_is_the_same_mask(kind: str) -> None:
    from neurolux.images.masks import as_mask

    assert torch.equal(as_mask(MEANT[kind]), MASK)


@pytest.mark.parametrize("kind", LATENTS)
def test_what_is_no_latent_is_refused(kind: str) -> None:
    from neurolux.stages.tasks import ImageSource

    value, message = LATENTS[kind]
    with pytest.raises((InvalidParameter, NotFinite), match=message):
        ImageSource.of(value, 8)


def test_places_in_a_tensor_are_places() -> None:
    from neurolux.stages.tasks import ImageSource

    latent = {"samples": SAMPLES, "batch_index": torch.tensor([2])}
    assert ImageSource.of(latent, 8).places == (2,)


@pytest.mark.parametrize("kind", CONDITIONINGS)
def test_what_is_no_conditioning_is_refused(kind: str) -> None:
    from neurolux.catalog.reading import read_catalog
    from neurolux.families.registry import family_of
    from neurolux.stages.prompts.conditioning import read_prompt

    value, message = CONDITIONINGS[kind]
    encoding = family_of("sdxl").encoding
    config = {encoding.width: 64, "projection_class_embeddings_input_dim": 32 + 6 * 8, "addition_time_embed_dim": 8}
    with pytest.raises((InvalidParameter, NotFinite), match=message):
        read_prompt(value, read_catalog().get("sdxl-base"), encoding, config, "positive")


@pytest.mark.parametrize(
    ("text", "message"), [(None, "no text"), ("a \ud800 b", "half of a character"), (3, "no text")]
)
def test_what_no_tokenizer_reads_is_refused(text: Any, message: str) -> None:
    from neurolux.stages.prompts.encode import check_text

    with pytest.raises(InvalidParameter, match=message):
        check_text(text)


@pytest.mark.parametrize("latent", [None, {}, {"samples": SAMPLES[:0]}, {"samples": SAMPLES[..., :0]}])
def test_nothing_is_not_decoded(latent: Any) -> None:
    from neurolux.stages.latent import samples_of

    with pytest.raises(InvalidParameter, match="the latent (holds no samples|is empty)"):
        samples_of(latent)
