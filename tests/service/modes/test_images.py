"""Images made of images, over the service, with the model that needs no download."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bridge.client import ClientError, ImageGenClient
from tests.service.conftest import Service

SEED = 1


def png(pixels: np.ndarray) -> str:
    """Pixels (H, W, 3 or 4) as a request carries them."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def run(client: ImageGenClient, mode: str, **parameters: Any) -> np.ndarray:
    """The first image of a mode, (H, W, 3)."""
    answer = client.run_mode(mode, **{"model": "starter", "seed": SEED, **parameters})
    return np.asarray(Image.open(io.BytesIO(client.images(answer)[0])).convert("RGB"))


@pytest.fixture(scope="module")
def apple(service: Service) -> np.ndarray:
    """A red apple on blue, 128x128."""
    with ImageGenClient(service.url) as client:
        return run(client, "text-to-image", prompt="red apple, blue background")


def ground(pixels: np.ndarray) -> np.ndarray:
    """The colour of the corners, red, green and blue."""
    corners = [pixels[:8, :8], pixels[:8, -8:], pixels[-8:, :8], pixels[-8:, -8:]]
    return np.median(np.concatenate([corner.reshape(-1, 3) for corner in corners]), axis=0)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The mean difference of two images, 0 to 255."""
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


def test_image_to_image_stays_near_at_low_strength_and_follows_the_prompt_at_high(
    client: ImageGenClient, apple: np.ndarray
) -> None:
    prompt = "yellow banana, green background"
    low, high = (
        run(client, "image-to-image", prompt=prompt, image=png(apple), strength=strength) for strength in (0.1, 0.95)
    )
    assert difference(low, apple) < 6
    assert difference(high, apple) > 30
    red, green, blue = ground(low)
    assert blue > red + 60
    assert blue > green + 40
    red, green, blue = ground(high)
    assert green > red + 40
    assert green > blue + 40


def test_an_odd_image_is_fitted_and_the_answer_says_so(client: ImageGenClient, apple: np.ndarray) -> None:
    photo = np.asarray(Image.fromarray(apple).resize((500, 300)))
    parameters = {"prompt": "red apple", "model": "starter", "image": png(photo), "strength": 0.3, "seed": SEED}
    answer = client.run_mode("image-to-image", **parameters)
    assert Image.open(io.BytesIO(client.images(answer)[0])).size == (224, 128)
    assert "the image of 500x300 was cropped to 479x274, scaled to 224x128 to suit the model" in answer.warnings
    with pytest.raises(ClientError, match="the image is 500x300 and starter would work in 240x144"):
        client.run_mode("image-to-image", **parameters, fit="error")


def test_strength_that_redraws_nothing_is_explained(client: ImageGenClient, apple: np.ndarray) -> None:
    with pytest.raises(ClientError, match="strength 0 redraws nothing; use more than 0"):
        run(client, "image-to-image", prompt="red apple", image=png(apple), strength=0)


def test_progress_counts_the_steps_that_are_run(client: ImageGenClient, apple: np.ndarray) -> None:
    events: list[Any] = []
    parameters = {"prompt": "banana", "model": "starter", "image": png(apple), "strength": 0.5, "num_images": 2}
    client.run_mode("image-to-image", **parameters, on_event=events.append)
    counts = [(event.value, event.maximum) for event in events if event.phase == "sample"]
    assert counts[-1] == (8, 8)  # two images, half of eight steps each


def test_inpaint_changes_the_mask_and_no_other_byte(client: ImageGenClient, apple: np.ndarray) -> None:
    mask = np.zeros((128, 128, 3), np.uint8)
    mask[37:101, 21:106] = 255
    prompt = "grinning face, blue background"
    drawn = run(client, "inpaint", prompt=prompt, image=png(apple), mask=png(mask))
    inside = mask[..., 0] > 0
    assert np.array_equal(drawn[~inside], apple[~inside])
    assert difference(drawn[inside], apple[inside]) > 20
    again = run(client, "inpaint", prompt=prompt, image=png(apple), mask=png(mask))
    assert np.array_equal(drawn, again)


def test_inpaint_takes_the_mask_from_transparency_at_the_images_own_size(
    client: ImageGenClient, apple: np.ndarray
) -> None:
    photo = np.asarray(Image.fromarray(apple).resize((301, 203)))
    cut = np.dstack([photo, np.full(photo.shape[:2], 255, np.uint8)])
    cut[60:150, 90:200, 3] = 0
    drawn = run(client, "inpaint", prompt="yellow circle, blue background", image=png(cut), feather=0)
    kept = cut[..., 3] == 255
    assert drawn.shape == photo.shape
    assert np.array_equal(drawn[kept], photo[kept])
    assert difference(drawn[~kept], photo[~kept]) > 20


@pytest.mark.parametrize("kind", ["a hole in white", "white on transparent"])
def test_inpaint_heeds_the_transparency_of_the_mask(client: ImageGenClient, apple: np.ndarray, kind: str) -> None:
    inside = np.zeros((128, 128), bool)
    inside[37:101, 21:106] = True
    mask = np.full((128, 128, 4), 255, np.uint8)
    mask[..., 3] = np.where(inside == (kind == "white on transparent"), 255, 0)
    drawn = run(client, "inpaint", prompt="grinning face, blue background", image=png(apple), mask=png(mask), feather=0)
    assert np.array_equal(drawn[~inside], apple[~inside])
    assert difference(drawn[inside], apple[inside]) > 20


def test_inpaint_without_any_mask_says_what_to_send(client: ImageGenClient, apple: np.ndarray) -> None:
    with pytest.raises(ClientError, match="nothing in the mask is white.* transparent"):
        run(client, "inpaint", prompt="banana", image=png(apple))


def test_outpaint_keeps_the_image_to_the_byte(client: ImageGenClient, apple: np.ndarray) -> None:
    prompt = "red apple, blue background"
    drawn = run(client, "outpaint", prompt=prompt, image=png(apple), left=40, right=24, top=0, bottom=10, feather=8)
    assert drawn.shape == (138, 192, 3)
    assert np.array_equal(drawn[:128, 40:168], apple)
    red, green, blue = np.median(drawn[:, :30].reshape(-1, 3), axis=0)
    assert blue > red + 40
    assert blue > green + 20


def test_edit_takes_models_that_edit_and_no_other(client: ImageGenClient, apple: np.ndarray) -> None:
    with pytest.raises(ClientError, match="starter does not edit by instruction; choose .*flux-kontext-dev"):
        run(client, "edit", prompt="make it green", image=png(apple))
    drawn = run(
        client,
        "edit",
        prompt="make it green",
        image=png(apple),
        model="tiny-flux-kontext",
        num_inference_steps=1,
        width=128,
        height=64,
    )
    assert drawn.shape == (64, 128, 3)
