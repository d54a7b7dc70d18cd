"""Splits an image into overlapping tiles and blends them back without seams. Pure arithmetic on tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil

import torch

from ..catalog.limits import SizeLimit
from ..errors import InvalidParameter


@dataclass(frozen=True)
class Tile:
    """A part of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, image: torch.Tensor) -> torch.Tensor:
        """This part of an image (..., H, W, C)."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width, :]


def tile_side(pixels: int, tile: int, limit: SizeLimit) -> int:
    """The side of the tiles for an image side of ``pixels``: ``tile``, or less if the image is smaller."""
    grid = limit.multiple_of
    return min(tile, max(ceil(pixels / grid) * grid, ceil(limit.minimum / grid) * grid))


def offsets(pixels: int, tile: int, overlap: int) -> list[int]:
    """Start positions of tiles along one side, evenly spaced. Neighbours overlap by at least ``overlap`` pixels."""
    if pixels <= tile:
        return [0]
    count = ceil((pixels - overlap) / (tile - overlap))
    return [round(index * (pixels - tile) / (count - 1)) for index in range(count)]


def plan_tiles(width: int, height: int, tile: int, overlap: int, limits: tuple[SizeLimit, SizeLimit]) -> list[Tile]:
    """The tiles of an image, row by row. Raises InvalidParameter for a size that the model does not accept.

    If the image is smaller than the smallest tile, the single tile is larger than the image: pad the image first.
    """
    for limit in limits:
        limit.check("tile", tile)
    if not 0 <= overlap <= tile // 2:
        raise InvalidParameter("overlap", f"overlap {overlap} is outside 0 to {tile // 2}, half of a tile of {tile}")
    across, down = tile_side(width, tile, limits[0]), tile_side(height, tile, limits[1])
    rows, columns = offsets(height, down, overlap), offsets(width, across, overlap)
    return [Tile(left, top, across, down) for top in rows for left in columns]


def padded_to(images: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Images (B, H, W, C), padded to ``width`` and ``height`` by repeating the right and lower edges."""
    right, below = max(width - images.shape[2], 0), max(height - images.shape[1], 0)
    if not right and not below:
        return images
    return torch.nn.functional.pad(images.movedim(-1, 1), (0, right, 0, below), mode="replicate").movedim(1, -1)


def ramp(length: int, overlap: int, *, before: bool, behind: bool) -> torch.Tensor:
    """The weight of each pixel along one side of a tile. It decreases towards an end where another tile overlaps."""
    share = torch.ones(length)
    if overlap:
        rising = (torch.arange(length) + 0.5) / overlap
        if before:
            share = torch.minimum(share, rising)
        if behind:
            share = torch.minimum(share, rising.flip(0))
    return share


def blend(tiles: Iterable[tuple[Tile, torch.Tensor]], width: int, height: int, overlap: int) -> torch.Tensor:
    """One image (height, width, C) from finished tiles (h, w, C). Overlapping tiles fade into each other."""
    total: torch.Tensor | None = None
    weight = torch.zeros(height, width, 1)
    for tile, pixels in tiles:
        if total is None:
            total = torch.zeros(height, width, pixels.shape[-1])
        across = ramp(tile.width, overlap, before=tile.left > 0, behind=tile.left + tile.width < width)
        down = ramp(tile.height, overlap, before=tile.top > 0, behind=tile.top + tile.height < height)
        share = (down[:, None] * across[None])[..., None]
        tile.cut(total).add_(pixels.float().cpu() * share)
        tile.cut(weight).add_(share)
    assert total is not None  # an image has at least one tile
    return total / weight


def grid_size(tiles: Iterable[Tile]) -> tuple[int, int]:
    """Width and height of the area that ``tiles`` cover."""
    tiles = list(tiles)
    return max(tile.left + tile.width for tile in tiles), max(tile.top + tile.height for tile in tiles)


def numbered(tiles: Iterable[Tile], images: int) -> Iterator[tuple[int, int, Tile]]:
    """Every tile of every image as (image index, tile index, tile)."""
    tiles = list(tiles)
    for image in range(images):
        for index, tile in enumerate(tiles):
            yield image, index, tile
