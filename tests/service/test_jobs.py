"""Jobs on a real ComfyUI: what is told while they run, images that come in, and the commands about them."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from bridge.client import ClientError, ImageGenClient
from bridge.contract import JobEvent, JobStatus
from tests.service.conftest import Service
from tests.signals import take_sigint

SMALL: dict[str, Any] = {"width": 128, "height": 96, "num_inference_steps": 2}
LONG: dict[str, Any] = {"width": 512, "height": 512, "num_inference_steps": 50}
ECHO: dict[str, Any] = {
    "1": {"class_type": "NeuroLuxLoadImage", "inputs": {"image": ""}, "_meta": {"title": "Photo"}},
    "2": {
        "class_type": "NeuroLuxResult",
        "inputs": {
            "images": ["1", 0],
            "name": "images",
            "output_format": "png",
            "quality": 90,
            "filename_prefix": "echo",
        },
        "_meta": {"title": "Result"},
    },
}
"""A graph that gives back the image that it was sent."""


@pytest.fixture(scope="module")
def echo(service: Service) -> str:
    """A mode that a user has saved while the service runs."""
    folder = service.settings.workflows
    (folder / "api").mkdir(exist_ok=True)
    nodes = [{"id": 1, "type": "NeuroLuxLoadImage", "widgets_values": [""]}]
    field = {
        "name": "photo",
        "kind": "image",
        "required": True,
        "targets": [["1", "image"]],
        "places": [["1", "image", 0]],
    }
    (folder / "api" / "echo.interface.json").write_text(json.dumps({"version": 1, "parameters": [field]}))
    (folder / "api" / "echo.json").write_text(json.dumps(ECHO))
    (folder / "echo.json").write_text(json.dumps({"nodes": nodes, "links": []}))
    return "echo"


def photo(size: tuple[int, int] = (40, 24), orientation: int | None = None) -> bytes:
    """A JPEG that is red on its left half and blue on its right, before it is turned."""
    image = Image.new("RGB", size, (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, size[0] // 2, size[1]))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_a_job_is_followed_from_queue_to_image(client: ImageGenClient) -> None:
    ahead = client.submit("a cat", seed=1, **LONG)
    job = client.submit("a cat", seed=int(time.time()), width=128, height=128, num_inference_steps=6)
    assert client.job(job.job_id).status is JobStatus.QUEUED
    events: list[JobEvent] = []
    for event in client.events(job.job_id):
        events.append(event)
        if len(events) == 1:
            assert client.cancel(ahead.job_id).outcome in ("interrupted", "dequeued")
    assert events[0].type == "state"
    assert "started" in [event.type for event in events]
    steps = [event for event in events if event.phase == "sample"]
    assert (steps[-1].value, steps[-1].maximum) == (6, 6)
    assert events[-1].state
    assert events[-1].state.status is JobStatus.DONE
    [data] = client.job_images(job.job_id)
    assert opened(data).size == (128, 128)


def test_server_sent_events_of_a_real_job_have_previews_for_who_asks(client: ImageGenClient, service: Service) -> None:
    job = client.submit("a cat", seed=int(time.time()) + 1, width=256, height=256, num_inference_steps=20)
    url = f"{service.url}/v1/jobs/{job.job_id}/events"
    told: list[dict[str, Any]] = []
    with requests.get(url, params={"previews": "true"}, stream=True, timeout=120) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith(b"data: "):
                told.append(json.loads(line.removeprefix(b"data: ")))
    previews = [event for event in told if event["type"] == "preview"]
    assert previews
    assert opened(base64.b64decode(previews[0]["image_b64"])).width > 0
    counted = [event for event in told if event.get("phase") == "sample"]
    assert all("seconds_left" in event for event in counted[1:])
    assert told[-1]["type"] == "done"


def test_a_running_job_says_its_step_and_the_next_one_its_place(client: ImageGenClient) -> None:
    running, waiting = client.submit("a cat", seed=2, **LONG), client.submit("a cat", seed=3, **LONG)
    try:
        deadline = time.monotonic() + 60
        while not (state := client.job(running.job_id)).progress or state.progress.phase != "sample":
            assert time.monotonic() < deadline, state
            time.sleep(0.05)
        assert state.progress.maximum == 50
        assert client.job(waiting.job_id).position == 0
    finally:
        assert client.cancel(waiting.job_id).outcome == "dequeued"
        assert client.cancel(running.job_id).outcome == "interrupted"
    listed = {job.job_id: job.status for job in client.jobs(status="cancelled", limit=1)}
    assert {running.job_id, waiting.job_id} <= set(listed)


def test_the_wait_is_known_once_such_a_job_has_run(client: ImageGenClient) -> None:
    size: dict[str, Any] = {"width": 384, "height": 384, "num_inference_steps": 20}
    client.generate("a cat", seed=4, **size)
    jobs = [client.submit("a cat", seed=seed, **size) for seed in (5, 6, 7)]
    deadline = time.monotonic() + 30
    while (state := client.job(jobs[2].job_id)).wait_seconds is None:
        assert time.monotonic() < deadline, state
        assert not state.status.final
        time.sleep(0.02)
    assert state.wait_seconds > 0
    assert [client.wait(job.job_id).status for job in jobs] == [JobStatus.DONE] * 3


def test_a_image_goes_into_a_saved_graph_and_is_turned_as_its_exif_says(client: ImageGenClient, echo: str) -> None:
    upright = opened(client.images(client.run_mode(echo, photo=photo()))[0])
    assert (upright.size, upright.getpixel((2, 12))[0] > 200) == ((40, 24), True)  # pyright: ignore
    turned = opened(client.images(client.run_mode(echo, photo=photo(orientation=6)))[0])
    assert turned.size == (24, 40)
    red, blue = turned.getpixel((12, 2)), turned.getpixel((12, 38))
    assert red[0] > 200 > red[2]  # pyright: ignore
    assert blue[2] > 200 > blue[0]  # pyright: ignore


def test_a_image_comes_as_a_file_of_a_form_and_as_the_result_of_a_job(
    client: ImageGenClient, service: Service, echo: str
) -> None:
    answer = requests.post(
        f"{service.url}/v1/modes/{echo}", files={"photo": ("my photo.jpg", photo(), "image/jpeg")}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    first = answer.json()
    again = client.run_mode(echo, photo=f"job:{first['job_id']}/0")
    assert opened(client.images(again)[0]).tobytes() == opened(base64.b64decode(first["images"][0])).tobytes()
    assert client.job(again.job_id).parameters["photo"].startswith("input:")  # pyright: ignore
    with pytest.raises(ClientError, match="photo is required"):
        client.run_mode(echo)
    with pytest.raises(ClientError, match="is not an image"):
        client.run_mode(echo, photo="example.png")


def test_a_request_repeated_under_its_key_is_drawn_once(client: ImageGenClient, service: Service) -> None:
    body = {"prompt": "a cat", "seed": 8, **SMALL}
    headers = {"Idempotency-Key": str(time.time())}
    first, again = (
        requests.post(f"{service.url}/v1/generate-image", json=body, headers=headers, timeout=120) for _ in range(2)
    )
    assert first.status_code == 200, first.text
    assert first.json() == again.json()
    assert again.headers["Idempotency-Replayed"] == "true"


# -- commands ------------------------------------------------------------------------------------------------------


def test_watch_follows_a_job_and_saves_its_images(imagegen, tmp_path: Path) -> None:
    done = imagegen("generate", "A watched cat", "--watch", "--size", "128x96", "--steps", "2", "--seed", "5")
    assert done.returncode == 0, done.stderr
    assert "2/2" in done.stderr
    job_id = next(line for line in done.stderr.splitlines() if "job " in line).rpartition("job ")[2]
    with Image.open(tmp_path / done.stdout.strip()) as image:
        assert image.size == (128, 96)
    listed = imagegen("jobs", "--limit", "3")
    row = next(line for line in listed.stdout.splitlines() if line.startswith(job_id))
    assert "done" in row
    assert "1 images" in row
    assert imagegen("cancel", job_id).stdout == "the job was done before it could be cancelled; nothing has changed\n"


def test_a_watched_job_that_fails_is_an_error(imagegen) -> None:
    failed = imagegen("generate", "a cat", "--watch", "--model", "flux-schnell", "--size", "256")
    assert failed.returncode == 1
    assert "flux-schnell" in failed.stderr or "FLUX.1-schnell" in failed.stderr


def test_ctrl_c_cancels_the_watched_job(service: Service, client: ImageGenClient, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "bridge",
        "generate",
        "a cat",
        "--watch",
        "--size",
        "512",
        "--steps",
        "50",
    ]
    process = subprocess.Popen(
        [*command, "--state-dir", str(service.settings.state_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        cwd=tmp_path,
        preexec_fn=take_sigint,
    )
    try:
        assert process.stderr
        job_id = next(line for line in process.stderr if "job " in line).rpartition("job ")[2].strip()
        deadline = time.monotonic() + 60
        while client.job(job_id).status is not JobStatus.RUNNING:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "the job was running and has been stopped" in said
    assert client.job(job_id).status is JobStatus.CANCELLED


def test_modes_are_listed_and_described_and_a_image_is_set_by_its_file(imagegen, echo: str, tmp_path: Path) -> None:
    listed = imagegen("modes").stdout
    assert "text-to-image" in listed
    assert echo in listed
    assert "(required)" in imagegen("modes", echo).stdout
    (tmp_path / "in.jpg").write_bytes(photo())
    done = imagegen("generate", "--mode", echo, "--set", f"photo=@{tmp_path / 'in.jpg'}", "--out", "out.png", "--quiet")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (40, 24)
