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
    changed = sides(vae, tile, scale)
    trained = {name: getattr(vae, name) for name in changed}
    vae.enable_tiling()
    try:
        for name, value in changed.items():
            setattr(vae, name, value)
        yield
    finally:
        vae.disable_tiling()
        for name, value in trained.items():
            setattr(vae, name, value)


def sides(vae: Any, tile: int, scale: int) -> dict[str, int]:
    """The attributes that set the size of a tile. A VAE that also encodes videos has another kind of them."""
    if hasattr(vae, "tile_sample_min_height"):
        stride = tile * 3 // 4 // scale * scale
        lengths = {"min": tile, "stride": stride}
        return {f"tile_sample_{kind}_{side}": lengths[kind] for kind in lengths for side in ("height", "width")}
    return {"tile_sample_min_size": tile, "tile_latent_min_size": tile // scale}
