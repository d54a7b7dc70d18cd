"""The images that a model sees beside the one that it edits: further inputs of Image to Edit, and stock ReferenceLatent
nodes behind a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..catalog.models import EDITS, Model
from ..errors import InvalidParameter
from ..families.registry import families, family_of
from ..families.spec import REFERENCE_LATENTS, REFERENCE_METHOD, FamilySpec
from ..images.pixels import as_image, check_finite
from ..loading.loaded import LoadedPipeline
from .image_encoding import from_raw
from .latent import check_space

STOCK = "take out ReferenceLatent"


@dataclass(frozen=True)
class References:
    """The images in order. Those that are known as pixels come first."""

    images: tuple[torch.Tensor, ...] = ()
    """(H, W, 3) in [0, 1], of any size."""
    latents: tuple[torch.Tensor, ...] = ()
    """(B, C, h, w), raw VAE space: row i is for image i of the batch that is made."""

    def __bool__(self) -> bool:
        return bool(self.images or self.latents)

    def pixels(self, family: FamilySpec) -> int:
        """How many pixels a step attends to; larger images are scaled down."""
        images = [image.shape[0] * image.shape[1] for image in self.images]
        latents = [one.shape[-2] * one.shape[-1] * family.latent.scale**2 for one in self.latents]
        return sum(min(each, family.edit_pixels) for each in images) + sum(latents)

    def beside(self, begin: Mapping[str, Any], loaded: LoadedPipeline, pipe: Any, index: int) -> dict[str, Any]:
        """``begin``, the pipeline's arguments for image ``index`` of the batch, with these images after its own.

        The pipeline takes pixels only: it is told of latents beforehand, and given an image in the place of each.
        """
        rows = [one[index % len(one)][None] for one in self.latents]
        if rows:
            pipe.reference_latents = [from_raw(loaded, row) for row in rows]
        images = [begin["image"]] if "image" in begin else []
        images += [as_image(image) for image in self.images]
        side = family_of(loaded.model.family).latent.scale * 8
        return {**begin, "image": [*images, *(Image.new("RGB", (side, side)) for _ in rows)]}


def refuse_several(model: Model, field: str, remedy: str) -> None:
    """Raise InvalidParameter for a model that sees no reference images."""
    if family_of(model.family).references is None or model.purpose not in EDITS:
        others = ", ".join(one.title for one in families().values() if one.references is not None)
        sees = "edits one image and sees no others" if model.purpose in EDITS else "does not edit by instruction"
        raise InvalidParameter(field, f"{model.name} {sees}; {remedy}, or choose an edit model of {others}")


def check_reference(model: Model, name: str, image: torch.Tensor) -> None:
    """Raise InvalidParameter for an image (H, W, 3) that the model's pipeline would not take."""
    limits = family_of(model.family).references
    height, width = image.shape[:2]
    if limits is None:
        return
    if min(width, height) < limits.least_side:
        raise InvalidParameter(
            name, f"{name} is {width}x{height}; {model.name} takes images of at least {limits.least_side} pixels a side"
        )
    if max(width, height) > limits.widest * min(width, height):
        raise InvalidParameter(
            name, f"{name} is {width}x{height}; {model.name} takes images of at most {limits.widest}:1; crop it"
        )


def check_prompt(model: Model, extra: Mapping[str, Any], channels: int) -> tuple[torch.Tensor, ...]:
    """The reference latents of a prompt's ``extra``. Raises InvalidParameter for what is not followed."""
    found: tuple[torch.Tensor, ...] = tuple(extra.get(REFERENCE_LATENTS) or ())
    if not found:
        return ()
    refuse_several(model, "positive", STOCK)
    method = extra.get(REFERENCE_METHOD)
    if method not in (None, "index"):
        raise InvalidParameter(
            "positive",
            f"the conditioning places its reference latents by {method!r} ({REFERENCE_METHOD}, set by "
            f"FluxKontextMultiReferenceLatentMethod), and {model.name} by index only; take out that node",
        )
    for one in found:
        check_space(one, channels, model, "positive")
        check_finite(one, "the reference latents", "Look at the node that made them.")
    return found


def agreed(positive: tuple[torch.Tensor, ...], negative: tuple[torch.Tensor, ...]) -> bool:
    """Whether both prompts have the same reference latents."""
    return len(positive) == len(negative) and all(map(torch.equal, positive, negative))


def all_references(
    model: Model, images: tuple[torch.Tensor, ...], prompts: Mapping[str, Mapping[str, Any]], channels: int
) -> tuple[References, list[str]]:
    """``images``, and the reference latents in the extras of the ``prompts``; and warnings.

    ``channels``: of a LATENT of the model. The pipeline shows the same images to both prompts.
    """
    found = {name: check_prompt(model, extra, channels) for name, extra in prompts.items()}
    positive, negative = found["positive"], found.get("negative", ())
    if negative and not agreed(positive, negative):
        raise InvalidParameter(
            "negative",
            f"the negative conditioning has other reference latents than the positive one, and {model.name} is shown "
            "the same images with both; link the same ReferenceLatent nodes behind both, or none behind the negative",
        )
    warnings = []
    if positive and "negative" in found and not negative:
        warnings.append("the reference latents of the positive conditioning are shown with the negative one as well")
    return References(images, positive), warnings
