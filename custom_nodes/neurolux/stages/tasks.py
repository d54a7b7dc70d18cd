"""Which diffusers pipeline a latent asks for, how many steps it runs, and what it is given of the image."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..catalog.models import EDITS, Model
from ..errors import InvalidParameter
from ..families.registry import family_of
from ..families.spec import Task
from ..images.frames import Frame, mask_warnings
from ..images.masks import as_mask
from ..images.pixels import as_image, check_finite
from ..loading.loaded import LoadedPipeline
from .image_encoding import from_raw
from .latent import check_latent, check_space, current_origin, origin_rows, places_in_batch, sized_for


@dataclass(frozen=True)
class ImageSource:
    """What a run of the sampler begins with: pixels where they are known, else latents; and where to redraw."""

    samples: torch.Tensor
    """(B, C, h, w), raw VAE space."""
    image: torch.Tensor | None
    """(B, H, W, 3) in [0, 1]."""
    mask: torch.Tensor | None
    """(B, 1, H, W), 1 = redraw."""
    frame: Frame | None = None
    """How ``image`` was fitted."""
    places: tuple[int, ...] = (0,)
    """For each image, which of its batch it is: its noise is that of the seed plus this."""
    remarks: tuple[str, ...] = ()
    """What was done to its masks."""
    references: tuple[torch.Tensor, ...] = ()
    """Further images for the model to see, each (H, W, 3) in [0, 1]."""

    @classmethod
    def of(cls, latent: Mapping[str, Any], scale: int) -> ImageSource:
        """What ``latent`` holds, with ``scale`` pixels to a latent pixel.

        Its image counts only if the samples are still those that were made of it.
        """
        check_latent(latent)
        samples = sized_for(latent, scale)
        image = latent.get("image")
        origin, rows = current_origin(latent), origin_rows(latent)
        size = (samples.shape[-2] * scale, samples.shape[-1] * scale)
        if "image_origin" in latent:
            image = None if image is None or rows is None else image[rows]
        if image is not None and (tuple(image.shape[1:3]) != size or len(image) != len(samples)):
            image = None
        mask, remarks = latent.get("noise_mask"), []
        if mask is not None:
            mask = as_mask(mask)[:, None]
            remarks = mask_warnings(mask, (size[1], size[0]), len(samples))
            if tuple(mask.shape[-2:]) != size:  # stock nodes make masks of any size
                mask = torch.nn.functional.interpolate(mask, size=size, mode="bilinear")
        frame = None if origin is None or image is None else origin.frame
        references = tuple(latent.get("references", ()))
        return cls(samples, image, mask, frame, places_in_batch(latent), tuple(remarks), references)

    def warnings(self) -> list[str]:
        """What of it has no effect."""
        masks, images = 0 if self.mask is None else len(self.mask), len(self.samples)
        if masks <= images:
            return [*self.remarks]
        unused = "only the first is used" if images == 1 else f"only the first {images} are used"
        return [*self.remarks, f"the latent has {masks} masks and {images} image{'s' * (images > 1)}: {unused}"]

    def arguments(self, loaded: LoadedPipeline, task: Task, strength: float, index: int) -> dict[str, Any]:
        """The pipeline's own arguments for image ``index`` of the batch."""
        if task == "text-to-image" or (task == "edit" and self.image is None):
            return {}
        family = family_of(loaded.model.family)
        pixels = None if self.image is None else self.image[index]
        shrinks = task == "inpaint" and family.edits_parts
        if pixels is not None and shrinks and pixels[..., 0].numel() > family.edit_pixels:
            pixels = None  # latents are not scaled
        if pixels is None:
            check_finite(self.samples, "the latents given to Sample", "Look at the node that made them.")
            check_space(self.samples, family.latent.channels_with(loaded.pipe.vae), loaded.model)
        image = from_raw(loaded, self.samples[index][None]) if pixels is None else as_image(pixels)
        if task == "edit":
            assert isinstance(image, Image.Image)  # choose_task has seen to it
            return {"image": image, "max_area": image.width * image.height}
        arguments: dict[str, Any] = {"image": image, "strength": strength}
        if self.mask is not None:
            arguments["mask_image"] = as_image(self.mask[index % len(self.mask), 0])
            if pixels is None:
                arguments["masked_image_latents"] = image  # latents cannot be masked by pixels
        return arguments


def begin_with(pipe: Any, source: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    """``source``, an ImageSource's arguments, as ``pipe`` takes them: some pipelines begin with pixels only."""
    if not hasattr(pipe, "given_latents"):
        return source
    latents = isinstance(source["image"], torch.Tensor)
    pipe.given_latents = source["image"] if latents else None
    return {**source, "image": Image.new("RGB", (width, height))} if latents else source


def choose_task(model: Model, source: ImageSource, strength: float) -> Task:
    """What the latent asks of ``model``. Raises InvalidParameter where the model is not made for that."""
    if not 0 <= strength <= 1:
        raise InvalidParameter("strength", f"strength {strength:g} is outside 0 to 1; 1 redraws everything")
    if not source.samples.any():
        return without_image(model, source, strength)
    masked = source.mask is not None
    if model.purpose == "fill":
        if not masked or source.image is None:
            raise InvalidParameter(
                "mask" if source.image is not None else "latent",
                f"{model.name} fills in a masked part of an image; link Encode Image with a mask, "
                "or choose another model to redraw a whole image",
            )
        return "fill"
    if model.purpose in EDITS:
        if masked and family_of(model.family).edits_parts:
            return "inpaint"
        if masked or source.image is None:
            raise InvalidParameter(
                "mask" if masked else "latent",
                f"{model.name} edits a whole image by an instruction and takes no mask; link Encode Image without "
                "one, or choose another model to redraw a part",
            )
        if strength < 1:
            raise InvalidParameter(
                "strength",
                f"{model.name} edits by an instruction and has no strength; leave strength at 1, "
                "or choose another model for image to image",
            )
        return "edit"
    return "inpaint" if masked else "image-to-image"


def without_image(model: Model, source: ImageSource, strength: float) -> Task:
    """Text to image, from an empty latent."""
    if source.mask is not None:
        raise InvalidParameter(
            "latent",
            "the latent has a mask and is empty: there is no image to redraw a part of; "
            "link Encode Image, or an Empty Latent without a mask",
        )
    if strength < 1:
        raise InvalidParameter(
            "strength",
            f"strength {strength:g} is how much of an image is redrawn, and the latent is empty; "
            "link Encode Image, or leave strength at 1",
        )
    if model.purpose == "fill":
        raise InvalidParameter(
            "model",
            f"{model.name} fills in a masked part of an image and generates none from a prompt alone; "
            "link Encode Image with a mask, or choose another model",
        )
    return "text-to-image"


def steps_to_run(model: Model, task: Task, steps: int, strength: float) -> int:
    """How many of ``steps`` are run at ``strength``: the last ones. Raises InvalidParameter where none would be.

    The arithmetic is that of the pipelines' own ``get_timesteps``.
    """
    if task in ("text-to-image", "edit"):
        return steps
    count = family_of(model.family).running_steps
    running = count(steps, strength)
    if running < 1:
        if strength == 0:
            raise InvalidParameter("strength", "strength 0 redraws nothing; use more than 0, 1 redraws everything")
        raise InvalidParameter(
            "strength",
            f"strength {strength:g} of {steps} steps leaves no step to run; use a strength of at least "
            f"{least_strength(count, steps):g}, or more steps",
        )
    return running


def least_strength(count: Callable[[int, float], int], steps: int) -> float:
    """The smallest strength, in hundredths, at which one of ``steps`` is run."""
    return next(share / 100 for share in range(1, 101) if count(steps, share / 100) >= 1)


def accepted(pipe: Any, **arguments: Any) -> dict[str, Any]:
    """Those of ``arguments`` that a pipeline takes: some read the size from the image."""
    names = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in arguments.items() if name in names}
