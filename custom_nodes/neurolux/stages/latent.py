"""The LATENT that an image begins with: empty, or made of an image.

Beside ``samples`` and ``noise_mask``, which stock nodes know, the LATENT of an image carries the pixels it was made of:
diffusers' pipelines draw the encoded image from a distribution, with the seed, so they have to encode it themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..catalog.models import Model
from ..errors import InvalidParameter
from ..families.registry import families, family_of
from ..images.control_images import fitted_batch
from ..images.frames import Frame, cycled, extent, resized, same_proportions, same_size
from ..images.masks import as_mask
from ..images.pixels import check_images, rgb

STOCK_SCALE = 8
"""Pixels to a latent pixel where a LATENT does not say: Empty Latent Image divides by it."""


def empty_latent(model: Model, width: int, height: int, count: int) -> torch.Tensor:
    """Zeros in the geometry of the model's family; a side of 0 is the model's default. Raises InvalidParameter."""
    width, height = width or model.defaults.width, height or model.defaults.height
    model.limits.width.check("width", width)
    model.limits.height.check("height", height)
    space = family_of(model.family).latent
    return torch.zeros(count, space.channels, height // space.scale, width // space.scale)


KNOWN_KEYS = frozenset(
    {"samples", "noise_mask", "batch_index", "image", "image_origin", "references", "type", "downscale_ratio_spacial"}
)
"""What a LATENT may hold. Others would be ignored."""
OTHER_KINDS = {
    "audio": "sound",
    "hunyuan3dv2": "a 3D shape",
    "sample_rate": "sound",
    "downscale_ratio_temporal": "a video",
}


def samples_of(latent: Mapping[str, Any]) -> torch.Tensor:
    """The samples of a LATENT. Raises InvalidParameter if there are none."""
    samples = latent.get("samples") if isinstance(latent, Mapping) else None
    if not isinstance(samples, torch.Tensor) or 0 in samples.shape:
        held = "holds no samples" if samples is None else f"is empty: its shape is {tuple(samples.shape)}"
        raise InvalidParameter("latent", f"the latent {held}; link Sample, an Empty Latent or Encode Image")
    return samples


def check_latent(latent: Mapping[str, Any]) -> None:
    """Raise InvalidParameter for a LATENT of something else than images, and for keys that would be ignored."""
    if not isinstance(latent, Mapping) or "samples" not in latent:
        raise InvalidParameter("latent", "the latent holds no samples; link an Empty Latent, or Encode Image")
    kind = OTHER_KINDS.get(str(latent.get("type")))
    kind = kind or next((OTHER_KINDS[key] for key in latent if key in OTHER_KINDS), None)
    shape = tuple(latent["samples"].shape) if isinstance(latent["samples"], torch.Tensor) else ()
    if kind is not None or getattr(latent["samples"], "is_nested", False) or len(shape) != 4:
        held = kind or (f"samples of the shape {shape}" if shape else "several tensors")
        raise InvalidParameter(
            "latent",
            f"the latent holds {held}, and images have latents of 4 dimensions (batch, channels, height, width); "
            "link an Empty Latent, or Encode Image",
        )
    if 0 in shape:
        raise InvalidParameter("latent", f"the latent is empty: its shape is {shape}; look at the node that selects it")
    if not latent["samples"].is_floating_point():
        dtype = str(latent["samples"].dtype).removeprefix("torch.")
        raise InvalidParameter("latent", f"the latent holds {dtype} values; look at the node that made it")
    unknown = [key for key in latent if key not in KNOWN_KEYS]
    if "type" in latent:
        unknown.append(f"type {latent['type']}")
    if unknown:
        raise InvalidParameter(
            "latent",
            f"the latent carries {' and '.join(map(repr, unknown))}, which is not known here and would have no effect; "
            "take out the node that sets it",
        )


def sized_for(latent: Mapping[str, Any], scale: int) -> torch.Tensor:
    """The samples of ``latent`` for a family with ``scale`` pixels to a latent pixel.

    An empty latent of another scale (newer ComfyUI notes it) becomes one of the same size in pixels. Raises
    InvalidParameter for one that is not empty, or whose scale is not known.
    """
    samples: torch.Tensor = latent["samples"]
    noted, given = latent.get("downscale_ratio_spacial"), scale_of(latent)
    if given == scale:
        return samples
    if given is None and not samples.any():
        raise InvalidParameter(
            "latent",
            f"the empty latent has {samples.shape[1]} channels ({space_name(samples.shape[1])}), so its size in pixels "
            "is not known; link an Empty Latent",
        )
    if given is None or (noted is None and samples.any()):  # one with an image in it is checked by its channels
        return samples
    if samples.any():
        raise InvalidParameter(
            "latent",
            f"the latent has {given} pixels to a latent pixel and the model takes {scale}; encode the image with the "
            "pipeline that samples",
        )
    height, width = (side * given // scale for side in samples.shape[-2:])
    return samples.new_zeros(*samples.shape[:2], height, width)


def scale_of(latent: Mapping[str, Any]) -> int | None:
    """Pixels to a latent pixel: as ``latent`` notes it, or that of the families with so many channels; None if neither
    says it."""
    usual = {family.latent.channels: family.latent.scale for family in families().values()}
    return latent.get("downscale_ratio_spacial") or usual.get(latent["samples"].shape[1])


def places_in_batch(latent: Mapping[str, Any]) -> tuple[int, ...]:
    """For each image, which of its batch it is: ``batch_index`` of ComfyUI, by which its noise is drawn.

    Raises InvalidParameter where they are not as many as the images.
    """
    count = len(latent["samples"])
    given = latent.get("batch_index")
    if given is None:
        return tuple(range(count))
    given = given.flatten().tolist() if isinstance(given, torch.Tensor) else given
    if not isinstance(given, list | tuple) or not all(isinstance(place, int | float) and place >= 0 for place in given):
        raise InvalidParameter(
            "latent",
            f"the places in the batch (batch_index) are {given!r}, and they are numbers from 0 on; take out "
            "the node that sets them",
        )
    if len(given) != count:
        raise InvalidParameter(
            "latent",
            f"the latent has {count} images and {len(given)} places in the batch (batch_index); link the nodes that "
            "change the batch (Rebatch Latents, Latent From Batch, Repeat) after those that make the latent",
        )
    return tuple(int(place) for place in given)


def check_space(samples: torch.Tensor, channels: int, model: Model, field: str = "latent") -> None:
    """Raise InvalidParameter for latents (B, C, h, w) that are not of ``channels``, those of the model's VAE."""
    if samples.ndim == 4 and samples.shape[1] == channels:
        return
    wanted = space_name(channels, model)
    given = samples.shape[1] if samples.ndim == 4 else 0
    held = f"{given} channels ({space_name(given)})" if given else f"the shape {tuple(samples.shape)}"
    raise InvalidParameter(
        field,
        f"the latent has {held} and {model.name} takes {channels} channels ({wanted}); sample and decode with the same "
        "pipeline, or go through an image: decode it, then Encode Image",
    )


def space_name(channels: int, model: Model | None = None) -> str:
    """The latent space with so many channels, for a sentence: the model's own, else those of the families."""
    if model is not None:
        return f"the latent space of {family_of(model.family).title}"
    titles = [family.title for family in families().values() if family.latent.channels == channels]
    if titles:
        return f"the latent space of {' or '.join(titles)}"
    return "an image, not a latent" if channels in (1, 3) else "a latent space that is not known here"


@dataclass(frozen=True, eq=False)
class ImageOrigin:
    """What a LATENT was made of, so that the finished image can be put back where it came from."""

    samples: torch.Tensor
    """The latent as it was made. A LATENT whose ``samples`` are others was changed since: its image is outdated."""
    original: torch.Tensor
    """The images as they were given, (B, H, W, 3)."""
    mask: torch.Tensor | None
    """The mask as it was given, (B, H, W); None: everything is redrawn."""
    frame: Frame
    noise_mask: torch.Tensor | None = None
    """The ``noise_mask`` that was made of it. A LATENT with another one was given it by a stock node."""


def origin_rows(latent: Mapping[str, Any]) -> list[int] | None:
    """Which image of its origin each image of ``latent`` is; None where one was changed since, or made of none.

    Stock nodes that only select, order and repeat the images of a batch copy their samples.
    """
    origin, samples = latent.get("image_origin"), latent.get("samples")
    if origin is None or samples is None:
        return None
    if origin.samples is samples:
        return list(range(len(samples)))
    if origin.samples.shape[1:] != samples.shape[1:]:
        return None
    count, rows = len(origin.samples), []
    places = latent.get("batch_index", ())
    for index, one in enumerate(samples):
        likely = [place % count for place in [*places[index : index + 1], index]]
        found = next((row for row in [*likely, *range(count)] if torch.equal(one, origin.samples[row])), None)
        if found is None:
            return None
        rows.append(found)
    return rows


def current_origin(latent: Mapping[str, Any]) -> ImageOrigin | None:
    """What ``latent`` was made of, and the mask that it has now; None where it was not made of an image, or was
    changed since."""
    rows = origin_rows(latent)
    if rows is None:
        return None
    origin: ImageOrigin = latent["image_origin"]
    made, present = origin.noise_mask, latent.get("noise_mask")
    if present is None:
        mask = None
    elif made is present or (made is not None and same_mask(made[rows], present)):
        mask = None if origin.mask is None else origin.mask[rows]
    else:
        mask = mask_of_original(cycled(as_mask(present), len(rows)), origin.frame)
    return replace(origin, samples=latent["samples"], original=origin.original[rows], mask=mask, noise_mask=present)


def same_mask(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two masks are equal."""
    return one.shape == other.shape and torch.equal(one, other)


def mask_of_original(mask: torch.Tensor, frame: Frame) -> torch.Tensor:
    """A mask (B, h, w) of the model's image, in the place and the size of the original: (B, H, W)."""
    left, top, right, bottom = frame.place
    inside = same_size(same_size(mask, frame.size)[:, top:bottom, left:right], extent(frame.part))
    whole = torch.zeros(len(mask), frame.given[1], frame.given[0])
    left, top, right, bottom = frame.part
    whole[:, top:bottom, left:right] = inside
    return whole


def put_back(images: torch.Tensor, origin: ImageOrigin) -> torch.Tensor:
    """Finished images (B, H, W, 3) in the place and the size of the ones they were made of.

    Larger or smaller images of the same proportions are scaled back. A pixel whose mask is 0 is the original's own, to
    the bit; between 0 and 1 the two are mixed. Raises InvalidParameter for images that are not of this origin.
    """
    check_put_back(images, origin)
    frame = origin.frame
    left, top, right, bottom = frame.place
    finished = resized(rgb(images).float().cpu(), frame.size)
    inside = resized(finished[:, top:bottom, left:right], extent(frame.part))
    original = cycled(origin.original, len(inside))
    result = original.clone()
    left, top, right, bottom = frame.part
    if origin.mask is None:
        result[:, top:bottom, left:right] = inside
        return result
    share = cycled(origin.mask, len(inside))[:, top:bottom, left:right, None]
    old = original[:, top:bottom, left:right]
    result[:, top:bottom, left:right] = torch.where(share > 0, old + (inside - old) * share, old)
    return result


def check_put_back(images: torch.Tensor, origin: ImageOrigin) -> None:
    """Raise InvalidParameter for images of other proportions than the model's, or that are not as many."""
    check_images(images)
    size, expected = (images.shape[2], images.shape[1]), origin.frame.size
    if size != expected and not same_proportions(size, expected):
        raise InvalidParameter(
            "images",
            f"the images are {size[0]}x{size[1]} and the latent is of {expected[0]}x{expected[1]}: the proportions "
            "differ, so they cannot be put back; link the images that were decoded from this latent, uncropped",
        )
    if len(images) % len(origin.original):
        raise InvalidParameter(
            "images",
            f"there are {len(images)} images and the latent holds {len(origin.original)} originals; "
            "select the same images of both (Latent From Batch and Image From Batch)",
        )


def fitted_to_latent(images: torch.Tensor, latent: Mapping[str, Any] | None) -> torch.Tensor:
    """``images`` (B, H, W, C) as ``fitted`` brings them to the size of ``latent``; as they are where there is none."""
    if latent is None:
        return rgb(images)
    origin = current_origin(latent)
    if origin is not None:
        return fitted_batch(images, *origin.frame.size, origin.frame)
    height, width = latent["samples"].shape[-2:]
    scale = scale_of(latent) or STOCK_SCALE
    return fitted_batch(images, width * scale, height * scale)
