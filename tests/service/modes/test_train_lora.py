"""The train-lora mode over the service: a LoRA for a word that the starter does not know draws what it was shown."""

from __future__ import annotations

import io
import json
import zipfile
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bridge.client import ClientError, ImageGenClient
from bridge.contract import ImageGenResponse, JobEvent

MAGENTA, ORANGE, SIDE = (230, 0, 200), (255, 140, 0), 128
STEPS = 50
FAST = {"model": "starter", "trigger": "zorb", "rank": 8, "batch": 4, "seed": 3, "samples": 1}


def zorb(left: int) -> Image.Image:
    """A square of magenta and orange stripes on white."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(image)
    for stripe in range(11):
        top = left + 8 * stripe
        draw.rectangle((left, top, left + 87, top + 7), fill=(ORANGE, MAGENTA)[stripe % 2])
    return image


@pytest.fixture(scope="module")
def images() -> bytes:
    """A zip of four zorbs, one of them with a caption of its own."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for number in range(4):
            encoded = io.BytesIO()
            zorb(16 + 4 * number).save(encoded, "png")
            archive.writestr(f"zorbs/zorb_{number}.png", encoded.getvalue())
        archive.writestr("zorbs/zorb_0.txt", "zorb, white background")
    return data.getvalue()


def by_name(client: ImageGenClient, answer: ImageGenResponse) -> dict[str, bytes]:
    """Each result's file."""
    return {file.result: data for file, data in zip(answer.files, client.images(answer), strict=True)}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


def share(image: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Share of the pixels that are near ``colour``."""
    return float((np.abs(image - np.array(colour)).max(axis=2) < 70).mean())


@pytest.fixture(scope="module")
def trained(service: Any, images: bytes) -> Iterator[tuple[dict[str, bytes], ImageGenResponse, list[JobEvent]]]:
    """One training: its files, its answer, what happened meanwhile."""
    events: list[JobEvent] = []
    with ImageGenClient(service.url) as client:
        answer = client.run_mode(
            "train-lora", pictures=images, name="zorb", steps=STEPS, **FAST, on_event=events.append
        )
        yield by_name(client, answer), answer, events


def test_it_draws_what_the_new_word_means(trained: Any) -> None:
    files, answer, _ = trained
    before, after = pixels(files["before"]), pixels(files["samples"])
    assert before.shape == after.shape == (SIDE, SIDE, 3)
    for colour in (MAGENTA, ORANGE):
        assert share(after, colour) > 0.1, share(after, colour)
        assert share(before, MAGENTA) < 0.02
    rows = after[24:96, 40:88].mean(axis=1)[:, 1]  # orange has green, magenta has none
    assert np.abs(np.diff(rows)).sum() > 3 * (rows.max() - rows.min()) > 150, "stripes, not one after the other"
    assert answer.model == "starter"


def test_the_answer_has_the_lora_and_the_loss_curve(trained: Any) -> None:
    files, answer, _ = trained
    assert {file.result: file.media_type for file in answer.files} == {
        "lora": "application/octet-stream", "loss_curve": "image/png", "samples": "image/png", "before": "image/png",
    }  # fmt: skip
    lora = files["lora"]
    length = int.from_bytes(lora[:8], "little")
    header = json.loads(lora[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert (metadata["base_model"], metadata["rank"], metadata["steps"]) == ("starter", "8", str(STEPS))
    assert metadata["trigger"] == "zorb"
    assert all(name.startswith("transformer.") and ".attn." in name for name in header)
    curve = pixels(files["loss_curve"])
    assert curve.shape == (540, 960, 3)
    assert (np.abs(curve - np.array((31, 95, 174))).max(axis=2) < 40).sum() > 500, "the line is drawn"


def test_progress_counts_steps_and_shows_the_curve(trained: Any) -> None:
    whole = STEPS + 16  # 8 for the image with the LoRA, 8 without
    seen = [event.value for event in trained[2] if event.type == "progress" and event.maximum == whole]
    assert sorted(seen) == seen
    assert {1, STEPS, whole} <= set(seen)
    previews = [Image.open(io.BytesIO(b64decode(event.image_b64 or ""))) for event in trained[2] if event.image_b64]
    assert previews[0].width > previews[0].height, "the loss curve"


def test_apply_lora_draws_it_and_without_it_nothing_has_changed(
    client: ImageGenClient, service: Any, trained: Any
) -> None:
    values = {"prompt": "zorb", "model": "starter", "seed": FAST["seed"]}
    (plain,) = client.images(client.run_mode("text-to-image", **values))
    (drawn,) = client.images(client.run_mode("lora", lora="zorb.safetensors", lora_strength=1.0, **values))
    assert np.array_equal(pixels(plain), pixels(trained[0]["before"]))
    assert np.array_equal(pixels(drawn), pixels(trained[0]["samples"]))


def test_a_training_that_was_cancelled_goes_on_to_the_same_file(client: ImageGenClient, images: bytes) -> None:
    values = {"pictures": images, "name": "again", "steps": 10, **FAST, "samples": 0}
    job = client.submit(mode="train-lora", **values)
    for event in client.events(job.job_id):
        if (event.maximum, event.value) == (10, 3):
            client.cancel(job.job_id)
    assert client.job(job.job_id).status == "cancelled"
    events: list[JobEvent] = []
    resumed = by_name(client, client.run_mode("train-lora", **values, resume=True, on_event=events.append))
    steps = [event.value for event in events if event.maximum == 10 and event.value is not None]
    assert 3 <= min(steps) < 10, steps
    unbroken = by_name(client, client.run_mode("train-lora", **values))
    assert resumed["lora"] == unbroken["lora"]
    assert set(resumed) == {"lora", "loss_curve"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../zorb"}, "is not a file name"),
        ({"learning_rate": 0.1, "resolution": 100}, "resolution 100"),
    ],
)
def test_what_is_wrong_is_said(client: ImageGenClient, images: bytes, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ClientError, match=message):
        client.run_mode("train-lora", **{"pictures": images, "name": "no", "steps": 2, **FAST, **changes})


def test_a_training_of_another_model_does_not_go_on(client: ImageGenClient, images: bytes) -> None:
    values = {"pictures": images, "name": "other", "steps": 2, **FAST, "samples": 0}
    client.run_mode("train-lora", **values)
    with pytest.raises(ClientError, match="model was 'starter' and is 'tiny-flux-dev'"):
        client.run_mode("train-lora", **{**values, "steps": 3, "model": "tiny-flux-dev", "resume": True})


def test_a_zip_with_something_else_in_it_is_refused_by_name(client: ImageGenClient) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("cat.png", b"not an image")
    with pytest.raises(ClientError, match=r"cat\.png is not a PNG, JPEG or WebP image"):
        client.run_mode("train-lora", pictures=data.getvalue(), name="no", steps=2, **FAST)
