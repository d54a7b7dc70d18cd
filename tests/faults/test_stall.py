"""A ComfyUI that answers every request and does nothing with its job, as when the GPU hangs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bridge.client import ImageGenClient
from tests.faults.cluster import Cluster, ended, running, submit, until

LIMIT_S = 2
SERVICE = "NEUROLUX_SERVICE_URL"


@pytest.fixture(scope="module")
def impatience(cluster: Cluster) -> Iterator[None]:
    """A worker that waits for two seconds, in this module."""
    worker, comfyui = cluster.processes["worker"], cluster.processes["comfyui"]
    worker.env["IMAGEGEN_STALL_S"] = str(LIMIT_S)
    worker.restart()
    yield
    del worker.env["IMAGEGEN_STALL_S"]
    worker.restart()
    comfyui.env.pop(SERVICE, None)
    comfyui.restart()


@pytest.fixture
def impatient(impatience: None, client: ImageGenClient) -> ImageGenClient:
    """A client of the whole cluster, with that worker."""
    return client


def managed(cluster: Cluster, *, by_somebody: bool) -> None:
    """Have a ComfyUI that knows, or does not, of somebody who would start another. Here it is the test."""
    comfyui = cluster.processes["comfyui"]
    if (SERVICE in comfyui.env) is not by_somebody:
        comfyui.env.pop(SERVICE, None)
        if by_somebody:
            comfyui.env[SERVICE] = "http://127.0.0.1:1"
        comfyui.restart()
        cluster.wait_comfyui()


def has_ended(cluster: Cluster) -> bool:
    process = cluster.processes["comfyui"].process
    assert process
    return process.poll() is not None


def test_slow_is_not_stuck(impatient: ImageGenClient) -> None:
    slow = submit(impatient, steps=10 * (LIMIT_S + 3), color=7005)
    assert ended(impatient, slow).status == "done"


def test_a_comfyui_that_nobody_would_start_again_lives_and_the_log_says_what_to_do(
    cluster: Cluster, impatient: ImageGenClient
) -> None:
    managed(cluster, by_somebody=False)
    hung = submit(impatient, fault="hang", color=7004)
    assert ended(impatient, hung).status == "failed"
    assert not has_ended(cluster)
    assert "restart it by hand" in cluster.processes["worker"].log.read_text()
    managed(cluster, by_somebody=True)  # That hand.


def test_a_hang_fails_the_job_and_the_next_one_runs_on_another_comfyui(
    cluster: Cluster, impatient: ImageGenClient
) -> None:
    managed(cluster, by_somebody=True)
    hung = submit(impatient, fault="hang", color=7001)
    waiting = submit(impatient, color=7002)
    state = ended(impatient, hung)
    assert (state.status, state.error and state.error.code) == ("failed", "stalled")
    assert state.error
    assert "no progress with this job for 2 s (IMAGEGEN_STALL_S)" in state.error.message
    until(lambda: has_ended(cluster))
    assert "neither goes on nor stops" in cluster.processes["comfyui"].log.read_text()
    cluster.processes["comfyui"].start()
    assert ended(impatient, waiting).status == "done"


def test_a_cancelled_job_that_hangs_is_cancelled_all_the_same(cluster: Cluster, impatient: ImageGenClient) -> None:
    managed(cluster, by_somebody=True)
    hung = submit(impatient, fault="hang", color=7003)
    running(impatient, hung)
    impatient.cancel(hung)
    assert ended(impatient, hung).status == "cancelled"
    until(lambda: has_ended(cluster))
