"""Many prompts and seeds in one job, over the service, judged by the images of the model that needs no download."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from bridge.client import ImageGenClient
from bridge.contract import JobStatus

COLOURS = ("red", "green", "blue")
PROMPTS = "\n\n".join(f"{colour} circle" for colour in COLOURS)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def colour_of(data: bytes) -> str:
    """The strongest channel in the middle."""
    middle = np.asarray(opened(data).convert("RGB"), float)[52:76, 52:76].reshape(-1, 3)
    return COLOURS[int(np.median(middle, axis=0).argmax())]


def test_each_prompt_with_each_seed_as_if_drawn_alone(client: ImageGenClient) -> None:
    answer = client.run_mode("batch", prompts=PROMPTS, seeds="1-2", model="starter")
    images = client.images(answer)
    assert [colour_of(data) for data in images] == ["red", "red", "green", "green", "blue", "blue"]
    assert answer.warnings == []
    alone = client.images(client.generate("green circle", model="starter", seed=2))[0]
    assert np.array_equal(np.asarray(opened(images[3])), np.asarray(opened(alone)))
    info = opened(images[3]).info
    assert info["parameters"].splitlines()[0] == "green circle"
    assert "Seed: 2," in info["parameters"]
    assert "workflow" in info
    again = client.run_mode("batch", prompts=PROMPTS, seeds="1-2", model="starter")
    assert client.images(again) == images


def test_a_line_that_fails_is_named_and_the_others_come(client: ImageGenClient) -> None:
    prompts = f"red circle\n{'circle ' * 2000}\nblue circle with a zeppelin"
    answer = client.run_mode("batch", prompts=prompts, seeds="5", model="starter")
    assert [colour_of(data) for data in client.images(answer)] == ["red", "blue"]
    failed, unknown = answer.warnings
    assert failed.startswith("not generated: prompt 2 'circle circle")
    assert failed.endswith("seed 5: the prompt has 13999 characters; at most 10000 are allowed")
    assert unknown == "'blue circle with a zeppelin': starter does not know 'zeppelin': the image may not show it"


def test_cancel_in_the_middle_of_a_batch(client: ImageGenClient) -> None:
    job = client.submit(
        mode="batch", prompts=PROMPTS, seeds="1-20", model="starter", num_inference_steps=10, width=256, height=256
    )
    reached = 0.0
    for event in client.events(job.job_id):
        if event.phase == "sample" and event.value is not None:
            assert event.maximum == 600
            reached = event.value
            if reached > 11:  # the second image
                assert client.cancel(job.job_id).outcome == "interrupted"
                break
    state = client.wait(job.job_id)
    assert state.status is JobStatus.CANCELLED
    assert state.images == []
    assert reached < 600


def test_from_the_command_line_with_a_file_of_prompts(imagegen, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("red circle\nblue circle\n")
    done = imagegen(
        "generate", "--mode", "batch", "--model", "starter", "--set", "prompts=@prompts.txt", "--set", "seeds=7"
    )
    assert done.returncode == 0, done.stderr
    paths = [tmp_path / line for line in done.stdout.splitlines()]
    assert [colour_of(path.read_bytes()) for path in paths] == ["red", "blue"]
    refused = imagegen("generate", "--mode", "batch", "--set", "prompts=red circle", "--set", "seeds=1-99")
    assert refused.returncode == 1
    assert "99 images are more than the 64 of one job" in refused.stderr


def test_its_schema_says_what_to_send(client: ImageGenClient) -> None:
    schema = client.mode("batch")
    assert schema["required"] == ["prompts"]
    assert schema["properties"]["combine"]["enum"] == ["every", "pairs", None]
    assert "1-4, 9" in schema["properties"]["seeds"]["description"]
