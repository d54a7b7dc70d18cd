"""Splits an image into overlapping tiles and blends them back without seams. Pure arithmetic on tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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


def fade(length: int, overlap: int, before: int, behind: int) -> torch.Tensor:
    """The weight of each pixel along one side of a tile, of ``length`` pixels.

    ``before`` and ``behind``: how many pixels it shares with its neighbours. One tile takes over from the other in the
    middle of what they share, within ``overlap`` pixels: tiles are independent drawings, and their mean is blurred.
    """
    place = torch.arange(length) + 0.5
    share = torch.ones(length)
    for shared, inwards in ((before, place), (behind, place.flip(0))):
        if shared > 0:
            share = torch.minimum(share, ((inwards - shared / 2) / max(overlap, 1) + 0.5).clamp(0, 1))
    return share


def shared_pixels(starts: Sequence[int], start: int, length: int) -> tuple[int, int]:
    """How many pixels a tile at ``start`` shares with the one before and the one behind it along a side."""
    index = starts.index(start)
    before = starts[index - 1] + length - start if index > 0 else 0
    behind = start + length - starts[index + 1] if index + 1 < len(starts) else 0
    return before, behind


def blend(tiles: Sequence[Tile], parts: Iterable[torch.Tensor], overlap: int) -> torch.Tensor:
    """One image (H, W, C) from the finished parts (h, w, C) of ``tiles``. Neighbours fade into each other."""
    width, height = grid_size(tiles)
    columns, rows = sorted({tile.left for tile in tiles}), sorted({tile.top for tile in tiles})
    total: torch.Tensor | None = None
    weight = torch.zeros(height, width, 1)
    for tile, pixels in zip(tiles, parts, strict=True):
        if total is None:
            total = torch.zeros(height, width, pixels.shape[-1])
        across = fade(tile.width, overlap, *shared_pixels(columns, tile.left, tile.width))
        down = fade(tile.height, overlap, *shared_pixels(rows, tile.top, tile.height))
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
