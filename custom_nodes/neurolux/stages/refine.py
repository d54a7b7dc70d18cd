"""A large image redrawn a little, tile by tile: image to image on each, blended. Memory is that of one tile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from ..adapters.lora.distilled import as_sampled
from ..families.registry import family_of
from ..families.spec import LatentSpace
from ..images.control_images import fitted_batch
from ..images.pixels import rgb
from ..images.tiles import Tile, blend, grid_size, numbered, padded_to, plan_tiles
from ..loading.handle import AppliedControl
from ..loading.loaded import LoadedPipeline
from .decode import decode
from .prompts.conditioning import Conditioning
from .sample import ProgressSpan, plan_sample, sample
from .tasks import ImageSource


@dataclass(frozen=True)
class RefineRequest:
    """How to redraw. ``tile`` and ``overlap`` in pixels; ``tile`` 0, ``steps`` 0, ``guidance`` -1: the model's own."""

    strength: float
    seed: int
    steps: int = 0
    guidance: float = -1.0
    tile: int = 0
    overlap: int = 64


def refine(
    loaded: LoadedPipeline,
    images: torch.Tensor,
    positive: Conditioning,
    negative: Conditioning | None,
    request: RefineRequest,
) -> torch.Tensor:
    """Images (B, H, W, 3) in [0, 1], redrawn at ``request.strength``; same shape, float32 on the CPU.

    Each tile is what the family's image-to-image pipeline makes of it with its own seed: tile t of image i has
    seed + i + t, in rows. A ControlNet follows the tile's part of its own image i.
    Raises InvalidParameter, or InterruptProcessingException in the middle.
    """
    model = loaded.model
    images = rgb(images).detach().float().cpu().clamp(0, 1)
    height, width = images.shape[1:3]
    tiles = plan_tiles(
        width, height, request.tile or default_tile(loaded), request.overlap, (model.limits.width, model.limits.height)
    )
    covered = grid_size(tiles)
    source = padded_to(images, *covered)
    work = list(numbered(tiles, len(source)))
    space = family_of(model.family).latent
    first = plan_sample(
        as_sampled(model, loaded.loras.active), loaded.spec.variant, tile_latent(space, tiles[0].cut(source[:1])),
        request.seed, request.steps, request.guidance, request.strength,
    )  # fmt: skip
    controls = whole_controls(loaded.controls, (width, height), covered)
    latents = []
    for number, (image, index, tile) in enumerate(work):
        part = ImageSource.of(tile_latent(space, tile.cut(source[image][None])), space.scale)
        planned = replace(first, seed=request.seed + image + index, source=part)
        span = ProgressSpan(number * first.running, len(work) * first.running)
        with controls_of(loaded, [cut_control(control, image, tile) for control in controls]):
            latents.append(sample(loaded, planned, positive, negative, span=span))
    finished = []
    for image in range(len(source)):
        own = latents[image * len(tiles) : (image + 1) * len(tiles)]
        decoded = (decode(loaded, latent)[0] for latent in own)
        finished.append(blend(tiles, decoded, request.overlap)[:height, :width])
    return torch.stack(finished).clamp(0, 1)


def default_tile(loaded: LoadedPipeline) -> int:
    """The side that the model was made for."""
    return min(loaded.model.defaults.width, loaded.model.defaults.height)


def tile_latent(space: LatentSpace, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tile (1, h, w, 3) as a LATENT. The pipeline encodes the pixels itself; of ``samples`` only the size is read."""
    height, width = pixels.shape[1:3]
    return {"samples": torch.ones(1, space.channels, height // space.scale, width // space.scale), "image": pixels}


def whole_controls(
    controls: Iterable[AppliedControl], size: tuple[int, int], covered: tuple[int, int]
) -> list[AppliedControl]:
    """``controls``, their images as large as what the tiles cover, and over the same things in it."""
    return [replace(one, image=padded_to(fitted_batch(one.image, *size), *covered)) for one in controls]


def cut_control(control: AppliedControl, image: int, tile: Tile) -> AppliedControl:
    """``control`` for one tile of ``image``: that part of its image, which goes round where there are fewer."""
    return replace(control, image=tile.cut(control.image[image % len(control.image)][None]))


@contextmanager
def controls_of(loaded: LoadedPipeline, controls: Iterable[AppliedControl]) -> Iterator[None]:
    """Let ``controls`` guide what is sampled meanwhile."""
    whole = loaded.controls
    loaded.controls = tuple(controls)
    try:
        yield
    finally:
        loaded.controls = whole
