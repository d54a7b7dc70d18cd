"""Faults that a ComfyUI shows too seldom or too slowly to be waited for."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
import requests

from bridge.client import ImageGenClient
from bridge.service.installer import Installation
from tests.faults.cluster import GRAPH, Cluster, ended, make_image, running, submit, until

_colors = itertools.count(1)


@pytest.fixture(scope="module")
def cluster(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("stand-in"), installation)
    try:
        cluster.wait_nats()
        cluster.worker(cluster.stand_in())
        cluster.gateway()
        yield cluster
    finally:
        cluster.close()


def test_a_job_that_takes_comfyui_down_each_time_fails_with_that_cause(
    cluster: Cluster, client: ImageGenClient
) -> None:
    job_id = submit(client, steps=0, color=next(_colors), fault="die")

    def over() -> bool:
        process = cluster.processes["comfyui"]
        if process.process and process.process.poll() is not None:
            process.start()
        return client.job(job_id).status.final

    until(over)
    state = client.job(job_id)
    assert (state.status, state.attempts) == ("failed", 3)
    assert state.error
    assert state.error.code == "worker_died"
    assert "died 3 times while it ran this job" in state.error.message
    cluster.processes["comfyui"].restart()
    assert ended(client, submit(client, color=next(_colors))).status == "done"


def test_a_history_that_is_empty_at_the_first_look_is_looked_at_again(cluster: Cluster, client: ImageGenClient) -> None:
    job_id = submit(client, color=next(_colors), fault="late history")
    state = ended(client, job_id)
    assert (state.status, len(state.images)) == ("done", 1)
    assert cluster.runs().count(job_id) == 1


def test_a_job_that_waits_for_its_turn_is_not_blamed_for_a_death(cluster: Cluster, client: ImageGenClient) -> None:
    first = submit(client, steps=30, color=next(_colors))
    waiting = submit(client, color=next(_colors))
    for _ in range(3):
        running(client, first)
        if client.job(first).attempts < 3:
            cluster.processes["comfyui"].restart()
        until(lambda: client.job(first).status.final or client.job(first).attempts)
    assert ended(client, waiting).status == "done"
    assert client.job(waiting).attempts == 1


def test_a_comfyui_that_did_not_load_the_nodes_gets_no_jobs_and_is_not_ready(
    cluster: Cluster, client: ImageGenClient
) -> None:
    missing = cluster.folder / "comfyui-output-without-nodes"
    missing.touch()
    cluster.processes["comfyui"].restart()
    cluster.wait_comfyui()
    try:
        ready = client.url + "/readyz"
        until(lambda: "NeuroLuxResult" in requests.get(ready, timeout=10).text)
        answer = requests.get(ready, timeout=10)
        message = answer.json()["error"]["message"]
        assert answer.status_code == 503
        assert "runs without NeuroLux's nodes (NeuroLuxResult is missing)" in message
        assert "logs/comfyui.log" in message
        # Drawn first and read second, so that the worker has had the time to take it.
        until(lambda: "no jobs are taken" in cluster.processes["worker"].log.read_text())
        assert [worker.comfyui_up for worker in client.workers().workers] == [False]
    finally:
        missing.unlink()
    assert ended(client, submit(client, color=next(_colors))).status == "done"


def test_an_interrupt_in_the_editor_ends_the_job_as_cancelled(cluster: Cluster, client: ImageGenClient) -> None:
    job_id = submit(client, steps=100, color=next(_colors))
    running(client, job_id)
    requests.post(cluster.urls["comfyui"] + "/interrupt", json={}, timeout=30)
    state = ended(client, job_id)
    assert state.status == "cancelled"
    assert state.error
    assert state.error.message == "the job was stopped in ComfyUI"


def test_a_job_deleted_from_comfyuis_queue_by_hand_ends_as_cancelled(cluster: Cluster, client: ImageGenClient) -> None:
    comfyui = cluster.urls["comfyui"]
    graph = GRAPH | {"2": {"class_type": "NeuroLuxIntegerParameter", "inputs": {"name": "steps", "value": 40}}}
    by_hand = {"prompt": graph, "prompt_id": "by-hand", "client_id": "editor"}
    requests.post(comfyui + "/prompt", json=by_hand, timeout=30)
    second = submit(client, color=next(_colors))
    queue = comfyui + "/queue"
    until(lambda: second in str(requests.get(queue, timeout=30).json()["queue_pending"]))
    requests.post(queue, json={"delete": [second]}, timeout=30)
    state = ended(client, second)
    assert state.status == "cancelled"
    assert state.error
    assert state.error.message == "the job was stopped in ComfyUI"
    until(lambda: requests.get(f"{comfyui}/history/by-hand", timeout=30).json())


def test_a_gateway_that_was_restarted_knows_how_far_a_job_is(cluster: Cluster, client: ImageGenClient) -> None:
    job_id = submit(client, steps=5, color=next(_colors), fault="stall")

    def step() -> float | None:
        progress = client.job(job_id).progress
        return progress.value if progress else None

    until(lambda: step() == 1)
    cluster.processes["gateway"].restart()
    cluster.ready()
    until(lambda: step() == 1, timeout_s=5)
    client.cancel(job_id)
    assert ended(client, job_id).status == "cancelled"


def test_jobs_among_kills_at_random_moments_all_end_once_and_truly(cluster: Cluster, client: ImageGenClient) -> None:
    dice = random.Random(7)
    jobs = {submit(client, steps=dice.randrange(3), color=(color := next(_colors))): color for _ in range(12)}
    for name in ("worker", "nats", "comfyui", "gateway"):
        moment = dice.randrange(1, 4)
        until(lambda moment=moment: len(cluster.runs()) >= moment)
        cluster.processes[name].restart()
    for job_id in jobs:
        state = ended(client, job_id)
        assert state.status == "done", state.error
        assert make_image(client, job_id)
