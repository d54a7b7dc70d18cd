"""kill -9 of every process while a job is somewhere on its way: it ends done, once, and nothing hangs."""

from __future__ import annotations

import itertools
import threading
from typing import Any
from uuid import uuid4

import pytest
import requests

from bridge.client import ClientError, ImageGenClient
from tests.faults.cluster import Cluster, ended, make_image, running, submit, until

_colors = itertools.count(1)


def color() -> int:
    """Another one each time, so that ComfyUI's cache does not answer."""
    return next(_colors)


def runs(cluster: Cluster, job_id: str) -> int:
    """How many runs of the job ComfyUI has seen to a good end since it was started."""
    history: dict[str, Any] = requests.get(cluster.urls["comfyui"] + "/history", timeout=10).json()
    return sum(key == job_id for key in history)


@pytest.mark.parametrize("name", ["worker", "gateway", "nats"])
@pytest.mark.parametrize("steps", [0, 12], ids=["at any moment", "while it runs"])
def test_a_killed_process_costs_a_job_nothing_but_time(
    cluster: Cluster, client: ImageGenClient, name: str, steps: int
) -> None:
    job_id = submit(client, steps=steps, color=color())
    if steps:
        running(client, job_id)
    cluster.processes[name].restart()
    state = ended(client, job_id)
    assert state.status == "done", state.error
    assert len(state.images) == 1
    assert make_image(client, job_id).startswith(b"\x89PNG")
    assert runs(cluster, job_id) == 1
    assert state.attempts <= 1


def test_a_job_outlives_the_comfyui_that_ran_it(cluster: Cluster, client: ImageGenClient) -> None:
    job_id = submit(client, steps=20, color=color())
    waiting = submit(client, steps=0, color=color())
    running(client, job_id)
    cluster.processes["comfyui"].restart()
    state = ended(client, job_id)
    assert (state.status, state.attempts) == ("done", 2), state.error
    assert len(state.images) == 1
    assert ended(client, waiting).attempts == 1


def test_everything_killed_at_once_comes_back_with_its_jobs(cluster: Cluster, client: ImageGenClient) -> None:
    jobs = [submit(client, steps=steps, color=color()) for steps in (15, 0, 0)]
    running(client, jobs[0])
    for process in cluster.processes.values():
        process.kill()
    for process in cluster.processes.values():
        process.start()
    for job_id in jobs:
        state = ended(client, job_id, timeout_s=120)
        assert state.status == "done", state.error
        assert make_image(client, job_id)


def test_a_request_that_waits_is_answered_through_a_restart_of_the_broker(
    cluster: Cluster, client: ImageGenClient
) -> None:
    answers: list[Any] = []
    job_id = str(uuid4())

    def wait() -> None:
        with ImageGenClient(client.url) as other:
            answers.append(other.generate("x", mode="work", job_id=job_id, steps=15, color=color()))

    waiter = threading.Thread(target=wait)
    waiter.start()
    until(lambda: _status(client, job_id) == "running")
    cluster.processes["nats"].restart()
    waiter.join(timeout=60)
    assert not waiter.is_alive()
    assert answers[0].images


def _status(client: ImageGenClient, job_id: str) -> str | None:
    try:
        return client.job(job_id).status
    except ClientError:
        return None
