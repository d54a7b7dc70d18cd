"""What a caller sees while ComfyUI is away, and after."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import requests

from bridge.client import ClientError, ImageGenClient
from bridge.service.runtime import running_service
from tests.service.conftest import Service

SMALL: dict[str, Any] = {"width": 128, "height": 96, "num_inference_steps": 2}


def test_while_comfyui_is_down_requests_are_told_to_come_back_and_then_they_run(
    service: Service, client: ImageGenClient
) -> None:
    # A ComfyUI that dies before it was ever ready stops the service; this one has drawn.
    assert client.generate("a cat", seed=1, **SMALL).images
    runtime = running_service(service.settings)
    assert runtime
    os.kill(runtime.pids["comfyui"], signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (answer := requests.get(f"{service.url}/readyz", timeout=30)).status_code != 503:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert answer.headers["Retry-After"]
    assert "ComfyUI" in answer.json()["error"]["message"]
    with pytest.raises(ClientError, match="ComfyUI is down or still starting") as caught:
        client.generate("a cat", width=256)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 5)
    client.wait_ready(120)
    assert client.generate("a cat", seed=1, **SMALL).images


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_job_that_runs_while_comfyui_is_killed_or_frozen_is_run_again(
    service: Service, client: ImageGenClient, blow: signal.Signals
) -> None:
    runtime = running_service(service.settings)
    assert runtime
    job = client.submit("a cat", seed=blow, width=256, height=256, num_inference_steps=30)
    deadline = time.monotonic() + 60
    while client.job(job.job_id).status != "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(runtime.pids["comfyui"], blow)
    deadline = time.monotonic() + 180
    while not (state := client.job(job.job_id)).status.final:
        assert time.monotonic() < deadline, state
        time.sleep(0.2)
    assert state.status == "done", state.error
    assert len(state.images) == 1
