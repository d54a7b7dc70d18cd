"""Two gateways, three workers and three stand-ins for ComfyUI on one NATS server, each its own process."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from bridge.client import ImageGenClient
from bridge.contract import WorkerEntry
from bridge.service.installer import Installation
from tests.faults.cluster import Cluster, ended, make_image, running, submit, until

_colors = itertools.count(1)
GATEWAYS = ("gateway", "gateway2")
WORKERS = ("one", "two", "three")


@pytest.fixture
def client(cluster: Cluster) -> Iterator[ImageGenClient]:
    """A client of the cluster with all its workers."""
    for name in WORKERS:
        process = cluster.processes[name]
        if process.process is None or process.process.poll() is not None:
            process.start()
    with cluster.ready() as client:
        until(lambda: set(listed(client)) == set(WORKERS))
        yield client


@pytest.fixture(scope="module")
def cluster(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("fleet"), installation)
    try:
        cluster.wait_nats()
        cluster.options = ["--nats-prefix", "acme.gpu"]
        for name in WORKERS:
            cluster.worker(cluster.stand_in(f"comfyui-{name}"), name)
        for name in GATEWAYS:
            cluster.gateway(name)
        yield cluster
    finally:
        cluster.close()


def listed(client: ImageGenClient) -> dict[str, WorkerEntry]:
    """The workers whose ComfyUI is up."""
    return {worker.worker_id: worker for worker in client.workers().workers if worker.comfyui_up}


def test_all_workers_share_the_queue_and_either_gateway_tells_of_every_job(
    cluster: Cluster, client: ImageGenClient
) -> None:
    clients = [cluster.client(name) for name in GATEWAYS]
    jobs = [submit(clients[n % 2], steps=5, color=next(_colors), model="alpha") for n in range(18)]
    states = [ended(clients[(n + 1) % 2], job_id) for n, job_id in enumerate(jobs)]
    assert [state.status for state in states] == ["done"] * len(jobs)
    assert {state.worker for state in states} == set(WORKERS)
    for job_id in jobs:
        assert make_image(clients[0], job_id) == make_image(clients[1], job_id)
    runs = Counter(job_id for name in WORKERS for job_id in cluster.runs(f"comfyui-{name}"))
    assert runs == dict.fromkeys(jobs, 1)


def test_a_worker_that_holds_the_model_is_preferred(cluster: Cluster, client: ImageGenClient) -> None:
    first = ended(client, submit(client, color=next(_colors), model="beta"))

    def holders() -> list[str]:
        return [name for name, worker in listed(client).items() if "beta" in worker.loaded_models]

    until(lambda: holders() == [first.worker])
    after = [ended(client, submit(client, color=next(_colors), model="beta")).worker for _ in range(8)]
    assert after == [first.worker] * 8


def test_no_job_starves_for_a_worker_that_holds_its_model(cluster: Cluster, client: ImageGenClient) -> None:
    blocking = [submit(client, steps=150, color=next(_colors), model="beta") for _ in range(3)]
    running(client, blocking[0])
    last = submit(client, color=next(_colors), model="beta")
    state = ended(client, last, timeout_s=30)
    assert state.status == "done"
    assert client.job(blocking[0]).status == "running"  # so another worker, without the model, ran the last
    for job_id in blocking:
        client.cancel(job_id)


def test_a_worker_that_dies_is_replaced_by_the_others(cluster: Cluster, client: ImageGenClient) -> None:
    job_id = submit(client, steps=30, color=next(_colors))
    running(client, job_id)
    worker = until(lambda: client.job(job_id).worker)
    cluster.processes[worker].kill()
    state = ended(client, job_id)
    assert state.status == "done"
    assert state.worker != worker
    assert state.attempts == 2


def test_the_command_lists_the_workers(cluster: Cluster, client: ImageGenClient) -> None:
    command = [sys.executable, "-m", "bridge", "workers", "--url", client.url]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = {line.split()[0]: line.split() for line in table.splitlines()}
    assert lines["WORKER"][:3] == ["WORKER", "COMFYUI", "DEVICE"]
    assert lines["two"][1:3] == ["up", "cpu"]
    answer = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True).stdout)
    record = next(worker for worker in answer["workers"] if worker["worker_id"] == "two")
    assert record["age_seconds"] < 15
    assert record["running"] == []
    assert record["vram_total_bytes"] == 8
