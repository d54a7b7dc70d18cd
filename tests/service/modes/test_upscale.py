"""The upscale mode over the service: twice the side, near the plain enlargement at low strength, no seams."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bridge.client import ClientError, ImageGenClient

PROMPT = "red apple, blue background"


@pytest.fixture(scope="module")
def apple(service: Any) -> Image.Image:
    """What the starter draws at its own size."""
    with ImageGenClient(service.url) as client:
        answer = client.generate(PROMPT, model="starter", seed=1)
        return Image.open(io.BytesIO(client.images(answer)[0])).convert("RGB")


def upscaled(client: ImageGenClient, image: Image.Image, **parameters: Any) -> np.ndarray:
    data = io.BytesIO()
    image.save(data, "png")
    values = {"image": data.getvalue(), "prompt": PROMPT, "model": "starter", "seed": 1, **parameters}
    answer = client.run_mode("upscale", **values)
    (made,) = client.images(answer)
    return np.asarray(Image.open(io.BytesIO(made)).convert("RGB")).astype(float)


def test_twice_the_side_and_near_the_plain_enlargement_at_low_strength(
    client: ImageGenClient, apple: Image.Image
) -> None:
    plain = np.asarray(apple.resize((256, 256), Image.Resampling.LANCZOS)).astype(float)
    low = upscaled(client, apple, strength=0.1)
    assert low.shape == (256, 256, 3)
    high = upscaled(client, apple, strength=0.9)
    distances = [np.abs(made - plain).mean() for made in (low, high)]
    assert 0 < distances[0] < 12, distances
    assert distances[1] > 2 * distances[0], distances
    assert np.array_equal(low, upscaled(client, apple, strength=0.1))


def test_tiles_leave_no_seam(client: ImageGenClient, apple: Image.Image) -> None:
    """Three tiles of 128 pixels across: they begin and end at 64, 128 and 192."""
    made = upscaled(client, apple, strength=0.3)
    jumps = np.abs(np.diff(made, axis=1)).mean(axis=(0, 2))
    edges = [place + offset for place in (64, 128, 192) for offset in (-1, 0)]
    others = np.delete(jumps, edges)
    assert max(jumps[edge] for edge in edges) <= np.percentile(others, 99) + 1


def test_sides_that_are_no_multiple_and_other_factors(client: ImageGenClient, apple: Image.Image) -> None:
    assert upscaled(client, apple.crop((0, 0, 101, 67)), upscale_by=1.5, strength=0.2).shape == (100, 152, 3)


def test_what_is_wrong_is_said(client: ImageGenClient, apple: Image.Image) -> None:
    with pytest.raises(ClientError, match="image is required"):
        client.run_mode("upscale", prompt=PROMPT, model="starter")
    with pytest.raises(ClientError, match=r"upscaler 'x\.pth' is not one of auto, lanczos"):
        upscaled(client, apple, upscaler="x.pth")
    with pytest.raises(ClientError, match="upscale_by 9.* is above the maximum of 4"):
        upscaled(client, apple, upscale_by=9.0)
