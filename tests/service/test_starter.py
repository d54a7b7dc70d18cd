"""The model that needs no download, over the service: it draws what was asked, and says what it does not know."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bridge.client import ClientError, ImageGenClient

SEED = 1


def draw(client: ImageGenClient, prompt: str, **parameters: Any) -> np.ndarray:
    answer = client.generate(prompt, model="starter", seed=SEED, **parameters)
    assert answer.model == "starter"
    return np.asarray(Image.open(io.BytesIO(client.images(answer)[0])).convert("RGB"), dtype=float)


def border(image: np.ndarray) -> np.ndarray:
    """The median colour of the outermost four pixels, 0 to 255."""
    edges = [image[:4], image[-4:], image[:, :4].swapaxes(0, 1), image[:, -4:].swapaxes(0, 1)]
    return np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)


def test_a_red_apple_on_blue_is_red_on_blue(client: ImageGenClient) -> None:
    image = draw(client, "red apple, blue background")
    assert image.shape == (128, 128, 3)
    red, green, blue = border(image)
    assert blue > red + 60
    assert blue > green + 40
    red, green, blue = np.median(image[48:80, 48:80].reshape(-1, 3), axis=0)
    assert red > green + 80
    assert red > blue + 80


@pytest.mark.parametrize(("colour", "channel"), [("red", 0), ("green", 1), ("blue", 2)])
def test_a_circle_has_the_colour_asked(client: ImageGenClient, colour: str, channel: int) -> None:
    middle = np.median(draw(client, f"{colour} circle")[52:76, 52:76].reshape(-1, 3), axis=0)
    assert middle.argmax() == channel


def test_words_that_it_does_not_know_are_named_and_it_draws_all_the_same(client: ImageGenClient) -> None:
    answer = client.generate("red apple with a zeppelin", model="starter", seed=SEED)
    assert len(answer.images) == 1
    [warning] = answer.warnings
    assert "starter does not know 'zeppelin'" in warning
    assert client.generate("red apple, blue background", model="starter", seed=SEED).warnings == []


def test_it_refuses_sizes_that_it_was_not_trained_for(client: ImageGenClient) -> None:
    with pytest.raises(ClientError, match="width 1024 is outside 128 to 256, the range of starter"):
        client.generate("red apple", model="starter", width=1024)


def test_nobody_who_asks_for_another_model_gets_it(client: ImageGenClient) -> None:
    with pytest.raises(ClientError) as caught:
        client.generate("red apple", model="flux-schnell", width=256, height=256)
    assert caught.value.status == 503
