"""One prompt over a matrix of two settings, over the service, on the model that needs no download."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bridge.client import ClientError, ImageGenClient
from bridge.contract import JobStatus

COLOURS = ("red", "green", "blue")


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def colour_of(image: np.ndarray) -> str:
    """The strongest channel in the middle."""
    middle = image[52:76, 52:76].reshape(-1, 3)
    return COLOURS[int(np.median(middle, axis=0).argmax())]


def test_colours_across_and_grounds_down(client: ImageGenClient) -> None:
    answer = client.run_mode(
        "grid",
        prompt="red circle, white background",
        model="starter",
        seed=1,
        x_setting="prompt",
        x_values="red, green, blue",
        y_setting="prompt",
        y_values="white, black",
    )
    sheet, *images = (opened(data) for data in client.images(answer))
    assert [colour_of(image) for image in images] == [*COLOURS, *COLOURS]
    grounds = [float(np.median(image[:4])) for image in images]
    assert min(grounds[:3]) > 200
    assert max(grounds[3:]) < 60
    assert answer.warnings == []
    assert (answer.seed, answer.model) == (1, "starter")
    assert sheet.shape[1] > 3 * 128
    assert sheet.shape[0] > 2 * 128
    alone = client.generate("blue circle, black background", model="starter", seed=1)
    assert np.array_equal(images[5], opened(client.images(alone)[0]))


def test_a_cell_that_fails_is_on_the_sheet_and_in_the_warnings(client: ImageGenClient) -> None:
    values: dict[str, Any] = {
        "x_setting": "num_inference_steps",
        "x_values": "8, 51",
        "y_setting": "none",
        "y_values": "",
    }
    answer = client.run_mode("grid", prompt="red circle", model="starter", seed=1, **values)
    sheet, image = (opened(data) for data in client.images(answer))
    assert colour_of(image) == "red"
    assert answer.warnings == ["not generated: steps 51: num_inference_steps 51 is outside 1 to 50 of this model"]
    assert (sheet == (0xFB, 0xE9, 0xE7)).all(axis=-1).sum() > 5000
    with pytest.raises(ClientError, match="none of the 2 images could be generated: steps 51: num_inference_steps 51"):
        client.run_mode("grid", prompt="red circle", model="starter", **{**values, "x_values": "51, 52"})


def test_what_cannot_be_meant_is_refused(client: ImageGenClient) -> None:
    with pytest.raises(ClientError, match="x_setting 'colour' is not one of prompt, seed, num_inference_steps"):
        client.run_mode("grid", prompt="red circle", model="starter", x_setting="colour")
    with pytest.raises(ClientError, match="the prompt does not contain 'green'"):
        client.run_mode("grid", prompt="red circle", model="starter", x_setting="prompt", x_values="green, blue")


def test_cancel_in_the_middle_of_a_grid(client: ImageGenClient) -> None:
    job = client.submit(
        "red circle", mode="grid", model="starter", num_inference_steps=10, width=256, height=256,
        x_setting="seed", x_values="1-60", y_setting="none", y_values="",
    )  # fmt: skip
    for event in client.events(job.job_id):
        if event.phase == "sample" and (event.value or 0) > 11:
            assert event.maximum == 600
            assert client.cancel(job.job_id).outcome == "interrupted"
            break
    state = client.wait(job.job_id)
    assert state.status is JobStatus.CANCELLED
    assert state.images == []
