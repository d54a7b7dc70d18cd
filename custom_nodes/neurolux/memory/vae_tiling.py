"""A VAE at work in tiles, where the plan grants it less memory than a whole image takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def tiling(vae: Any, tile: int | None, scale: int) -> Iterator[None]:
    """Encode and decode in tiles of ``tile`` pixels a side meanwhile; None: whole. ``scale``: pixels to a latent pixel.

    diffusers' own ``enable_tiling`` tiles only what is larger than the size that the VAE was trained at, 1024 here.
    """
    if tile is None:
        vae.disable_tiling()
        yield
        return
    trained = vae.tile_sample_min_size, vae.tile_latent_min_size
    vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // scale
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = trained
