"""What a mask says to redraw, in every way that people send one, and how it fades in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.pack.conftest import REPO  # noqa: F401 - puts the pack on the path

H, W = 20, 32
INSIDE = torch.zeros(H, W)
INSIDE[5:15, 8:24] = 1
WHITE = torch.ones(H, W, 3)
PHOTO = torch.from_numpy(np.random.default_rng(0).random((H, W, 3), np.float32))
HALVES = torch.cat([torch.zeros(H, W // 2, 3), torch.ones(H, W // 2, 3)], dim=1)
RIGHT = HALVES[..., 0]
AROUND = 1 - INSIDE

MASKS: dict[str, tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, str]] = {
    "white on black": (INSIDE[..., None].expand(H, W, 3), None, INSIDE, ""),
    "white on black, opaque": (INSIDE[..., None].expand(H, W, 3), torch.zeros(H, W), INSIDE, ""),
    "a hole in white": (WHITE, INSIDE, INSIDE, "transparent part is redrawn"),
    "a hole in white, black below": (WHITE * AROUND[..., None], INSIDE, INSIDE, "transparent part is redrawn"),
    "white on a white transparent ground": (WHITE, AROUND, INSIDE, "white part is redrawn"),
    "white on a black transparent ground": (INSIDE[..., None].expand(H, W, 3), AROUND, INSIDE, "white part is redrawn"),
    "a soft hole in white": (WHITE, INSIDE * 0.5, INSIDE * 0.5, "transparent part is redrawn"),
    "a hole in black": (torch.zeros(H, W, 3), INSIDE, INSIDE, ""),
    "a hole in grey": (WHITE * 0.5, INSIDE, INSIDE, ""),
    "a hole in a photo": (PHOTO, INSIDE, INSIDE, ""),
    "a hole in a grey photo": (PHOTO[..., :1].expand(H, W, 3), INSIDE, INSIDE, "has greys"),
    "black and white, partly transparent": (HALVES, INSIDE, RIGHT * AROUND, "black and white with a transparent part"),
    "almost opaque": (INSIDE[..., None].expand(H, W, 3), torch.full((H, W), 0.01), INSIDE, ""),
    "transparency of another size, empty": (INSIDE[..., None].expand(H, W, 3), torch.zeros(64, 64), INSIDE, ""),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("way", ["mask_transparency", "fourth channel"])
def test_a_mask_image_is_read_as_it_was_meant(kind: str, way: str) -> None:
    from neurolux.images.masks import mask_from

    image, transparency, expected, warning = MASKS[kind]
    if way == "mask_transparency":
        read = mask_from(image[None], None, 0, image_transparency=None if transparency is None else transparency[None])
    else:
        if transparency is None or transparency.shape != (H, W):
            return
        read = mask_from(torch.cat([image, 1 - transparency[..., None]], dim=-1)[None], None, 0)
    assert torch.allclose(read.mask[0], expected, atol=1e-6)
    assert bool(read.warnings) == bool(warning)
    assert warning in " ".join(read.warnings)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_grey_masks_and_their_alpha_are_read_as_colours_are(channels: int) -> None:
    from neurolux.images.masks import mask_from

    grey = HALVES[..., :1] if channels < 4 else HALVES
    alpha = INSIDE[..., None]
    image = grey if channels == 1 else torch.cat([grey, alpha], dim=-1)
    whole = HALVES if channels == 1 else torch.cat([HALVES, alpha], dim=-1)
    assert torch.equal(mask_from(image[None], None, 0).mask, mask_from(whole[None], None, 0).mask)


def test_a_mask_of_more_channels_than_colours_and_alpha_is_refused() -> None:
    from neurolux.errors import InvalidParameter
    from neurolux.images.masks import mask_from

    with pytest.raises(InvalidParameter, match="1 to 4 channels"):
        mask_from(torch.ones(1, H, W, 5), None, 0)


def test_a_mask_that_is_all_transparent_or_of_another_image_is_refused() -> None:
    from neurolux.errors import InvalidParameter
    from neurolux.images.masks import mask_from

    with pytest.raises(InvalidParameter, match="transparent everywhere"):
        mask_from(WHITE[None], None, 0, image_transparency=torch.ones(1, H, W))
    with pytest.raises(InvalidParameter, match=r"32x20 and its transparency 64x64; link both"):
        mask_from(WHITE[None], None, 0, image_transparency=torch.ones(1, 64, 64))


@pytest.mark.parametrize("feather", [0, 3])
def test_a_batch_with_a_mask_without_white_is_refused(feather: int) -> None:
    from neurolux.errors import InvalidParameter
    from neurolux.images.masks import mask_from

    with pytest.raises(InvalidParameter, match="nothing in the mask is white"):
        mask_from(torch.stack([WHITE, WHITE * 0]), None, feather)


def test_each_mask_of_a_batch_has_its_own_transparency() -> None:
    from neurolux.images.masks import mask_from

    images = torch.stack([WHITE, PHOTO])
    read = mask_from(images, None, 0, image_transparency=torch.stack([AROUND, INSIDE]))
    assert torch.equal(read.mask, torch.stack([INSIDE, INSIDE]))


@pytest.mark.parametrize("feather", [0, 1, 3, 8])
def test_transparency_fades_in_over_the_feather(feather: int) -> None:
    from neurolux.images.masks import mask_from

    transparency = torch.zeros(1, 40, 64)
    transparency[:, 10:35, 12:52] = 1
    mask = mask_from(None, transparency, feather).mask
    assert mask.shape == (1, 40, 64)
    assert torch.equal(mask > 0, transparency > 0)  # inwards only
    row = mask[0, 22, 12:52]
    expected = torch.clamp(torch.arange(1, 41) / (feather + 1), max=1)
    assert torch.allclose(row[:20], expected[:20])
    assert torch.allclose(row, row.flip(0))


def test_a_half_transparent_area_fades_to_half() -> None:
    from neurolux.images.masks import mask_from

    transparency = torch.zeros(1, 40, 64)
    transparency[:, 10:35, 12:52] = 0.5
    mask = mask_from(None, transparency, 3).mask
    assert torch.allclose(mask[0, 22, 12:17], torch.tensor([0.125, 0.25, 0.375, 0.5, 0.5]))


@pytest.mark.parametrize(("width", "height"), [(24, 10), (10, 24)])
@pytest.mark.parametrize("added", [(3, 0, 0, 0), (0, 4, 0, 0), (0, 0, 5, 0), (0, 0, 0, 6), (1, 2, 3, 4)])
def test_outpainting_masks_what_is_added_to_an_image_that_is_not_square(
    width: int, height: int, added: tuple[int, int, int, int]
) -> None:
    from neurolux.images.masks import extended

    image = torch.rand(2, height, width, 3)
    left, top, right, bottom = added
    pixels, mask = extended(image, added, feather=0)
    assert pixels.shape == (2, height + top + bottom, width + left + right, 3)
    assert mask.shape == (1, height + top + bottom, width + left + right)
    inner = (slice(None), slice(top, top + height), slice(left, left + width))
    assert torch.equal(pixels[inner], image)
    assert not mask[inner].any()
    assert mask.sum() == mask.numel() - width * height
