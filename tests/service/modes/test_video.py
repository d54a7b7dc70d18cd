"""The mode video through the bridge: a file that plays, with the frames that were asked for. The starter draws no
video (it is a FLUX), so these are tiny random weights: what the images show is nothing."""

from __future__ import annotations

import io
import time
from typing import Any

import av
import pytest
from PIL import Image

from bridge.client import ClientError, ImageGenClient
from bridge.contract import JobStatus
from tests.service.conftest import Service
from tests.tiny_models import tiny_motion_adapter

VIDEO: dict[str, Any] = {"prompt": "a boat", "model": "tiny-sd15", "motion": "tiny-motion", "width": 128, "height": 64}


@pytest.fixture(scope="module", autouse=True)
def adapter(service: Service) -> None:
    tiny_motion_adapter(seed=9).save_pretrained(service.settings.models / "animatediff_models" / "tiny-motion")


def frames_of(data: bytes) -> list[Any]:
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 6
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


def test_a_video_has_the_frames_that_it_was_asked_for_and_plays(client: ImageGenClient) -> None:
    request = {**VIDEO, "seed": 3, "steps": 2, "num_frames": 5, "fps": 6, "video_format": "mp4 and webp"}
    done = client.run_mode("video", **request)
    mp4, webp = client.job_images(done.job_id)
    frames = frames_of(mp4)
    assert [frame.shape for frame in frames] == [(64, 128, 3)] * 5
    assert any((frames[0] != frame).any() for frame in frames[1:])
    with Image.open(io.BytesIO(webp)) as image:
        assert (image.format, image.n_frames, image.size) == ("WEBP", 5, (128, 64))  # pyright: ignore
    again = client.run_mode("video", **request)
    assert client.job_images(again.job_id) == [mp4, webp]


def test_progress_and_cancel_in_the_middle(client: ImageGenClient) -> None:
    job = client.submit(mode="video", **{**VIDEO, "seed": int(time.time()), "steps": 100, "num_frames": 8})
    seen = []
    for event in client.events(job.job_id):
        if event.phase == "sample":
            seen.append(event)
            if len(seen) == 2:
                assert event.maximum == 100
                assert client.cancel(job.job_id).outcome == "interrupted"
    assert client.job(job.job_id).status is JobStatus.CANCELLED


def test_what_cannot_be_is_said(client: ImageGenClient) -> None:
    with pytest.raises(ClientError, match="num_frames 9 is more than the 8 that tiny-motion was made for"):
        client.run_mode("video", **{**VIDEO, "num_frames": 9})
    with pytest.raises(ClientError, match="starter is a flux model, and AnimateDiff makes videos with sd15, sdxl"):
        client.run_mode("video", **{**VIDEO, "model": "starter", "height": 128})
    with pytest.raises(ClientError, match="num_frames 33 is above the maximum of 32"):
        client.run_mode("video", **{**VIDEO, "num_frames": 33})
