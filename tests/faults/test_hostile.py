"""Requests and records that are too large, of another version, or no records at all: an ordinary request follows each.

Two gateways and two workers with stand-ins for ComfyUI; nothing is restarted by the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests
from nats.aio.client import Client
from nats.js.api import ConsumerConfig
from nats.js.errors import BadRequestError, NotFoundError

from bridge.broker.connection import connect
from bridge.client import ImageGenClient
from bridge.contract import JobState
from bridge.names import Names
from bridge.service.installer import Installation
from tests.faults.cluster import GRAPH, MODE, Cluster, ended, submit, until

NAMES = Names()
TEXTS = "texts"
"""A mode with a text of any length."""
MIB = 2**20


@pytest.fixture(scope="module")
def cluster(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("hostile"), installation)
    try:
        cluster.wait_nats()
        more = {"class_type": "NeuroLuxTextParameter", "inputs": {"name": "prompts", "value": "-"}}
        (cluster.folder / "workflows" / f"{TEXTS}.json").write_text(json.dumps({"nodes": [], "links": []}))
        (cluster.folder / "workflows" / "api" / f"{TEXTS}.json").write_text(json.dumps({**GRAPH, "8": more}))
        cluster.secrets = {"IMAGEGEN_MAX_BODY_BYTES": str(4 * MIB)}
        for name in ("one", "two"):
            cluster.worker(cluster.stand_in(f"comfyui-{name}"), name)
        for name in ("gateway", "gateway2"):
            cluster.gateway(name)
        cluster.ready()
        cluster.ready("gateway2")
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[ImageGenClient]:
    """A client of the cluster, which is ready before and after the test, and has lost no process."""
    pids = own_pids(cluster)
    with cluster.ready(timeout_s=5) as client:
        yield client
    for name in ("gateway", "gateway2"):
        with cluster.ready(name, timeout_s=5) as one:
            assert ended(one, submit(one, color=7), 20).status == "done"
            assert newest(one)
    cluster.check()
    assert pids == own_pids(cluster)
    assert until(lambda: waiting(cluster) == 0, 30)


def own_pids(cluster: Cluster) -> dict[str, int]:
    """The processes of the service."""
    found = {name: process.process.pid for name, process in cluster.processes.items() if process.process}
    return {name: pid for name, pid in found.items() if name != "nats"}


def newest(client: ImageGenClient) -> str:
    """The id of the job that was submitted last; empty if there is none."""
    return next((state.job_id for state in client.jobs()), "")


def on_nats(cluster: Cluster, work: Callable[[Client], Awaitable[Any]]) -> Any:
    """Do something with a connection of another program."""

    async def run() -> Any:
        nc = await connect(cluster.nats_url, "another program")
        try:
            return await work(nc)
        finally:
            await nc.close()

    return asyncio.run(run())


def waiting(cluster: Cluster) -> int:
    """How many jobs are in the queue, with workers or not."""

    async def ask(nc: Client) -> int:
        return (await nc.jetstream().stream_info(NAMES.stream)).state.messages

    return on_nats(cluster, ask)


JOB_ID = "0d4c1d3a-3a3d-4b9f-8a51-0b2f3c4d5e6f"
SUBJECTS = [NAMES.request, NAMES.submit, f"{NAMES.state}.{JOB_ID}", NAMES.cancel, NAMES.model_info]
SIZES = [MIB - 200_000, MIB - 66_000, MIB - 3_000, MIB - 484, MIB - 100, MIB, MIB + 1000, 3 * MIB]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("character", ["x", "é", '"'])
def test_a_request_of_any_size_is_run_or_refused_with_the_limit(
    cluster: Cluster, client: ImageGenClient, character: str, size: int
) -> None:
    one = len(json.dumps(character, ensure_ascii=False).encode()) - 2
    body = json.dumps({"mode": TEXTS, "prompt": "x", "prompts": character * (size // one)}, ensure_ascii=False).encode()
    before = newest(client)
    answer = requests.post(f"{client.url}/v1/jobs", data=body, headers={"Content-Type": "application/json"}, timeout=20)
    if answer.status_code == 202:
        assert size < MIB - 60_000
        assert ended(client, answer.json()["job_id"], 20).status == "done"
    else:
        assert answer.status_code == 413, answer.text[:300]
        message = answer.json()["error"]["message"]
        assert str(MIB) in message
        assert len(message) < 500
        assert newest(client) == before


def test_a_refused_request_leaves_its_key_free(client: ImageGenClient) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    for text, status in (("x" * 2 * MIB, 413), ("a cat", 202)):
        body = {"mode": TEXTS, "prompt": "x", "prompts": text}
        assert requests.post(f"{client.url}/v1/jobs", json=body, headers=headers, timeout=20).status_code == status


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize(
    ("payload", "headers"),
    [
        (b"", {f"H{n}": "x" * 10_000 for n in range(100)}),
        (b"{}", {"Idempotency-Key": "k" * 900_000}),
        (b"\xff\xfe{}", {}),
        (b"[" * 500_000, {}),
        (b'{"prompt": "' + b"x" * 1_000_000 + b'", "mode": "work"}', {}),
        (b'{"job_id": "' + b"x" * 1_000_000 + b'"}', {}),
        (b"{" + b",".join(b'"f%d": 1' % n for n in range(80_000)) + b"}", {}),
    ],
    ids=["headers", "key", "utf8", "depth", "prompt", "id", "fields"],
)
def test_a_nats_request_of_any_bytes_is_answered(
    cluster: Cluster, client: ImageGenClient, subject: str, payload: bytes, headers: dict[str, str]
) -> None:
    async def ask(nc: Client) -> bytes:
        answer = await nc.request(subject, payload, timeout=30, headers=headers)
        assert len(answer.data) < 100_000
        assert not answer.headers
        return answer.data

    assert on_nats(cluster, ask).startswith(b"{")


def job_bytes(**changes: Any) -> bytes:
    known = {"job_id": str(uuid4()), "kind": "generate", "mode": MODE, "parameters": {"prompt": "a cat"}}
    return json.dumps({**known, "submitted_at": time.time(), **changes}).encode()


UNREADABLE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "no JSON": lambda: b"\xff\xfe\x00",
    "a list": lambda: b"[]",
    "brackets": lambda: b"[" * 100_000,
    "no id": lambda: b"{}",
    "a bad id": lambda: job_bytes(job_id="../../etc"),
    "an id of a number": lambda: job_bytes(job_id=7),
    "no mode": lambda: job_bytes(mode=None),
    "another kind": lambda: job_bytes(kind="train"),
    "parameters of a list": lambda: job_bytes(parameters=[]),
    "no time": lambda: job_bytes(submitted_at="soon"),
}


def test_jobs_that_nobody_can_read_end_as_failed_and_leave_the_queue(cluster: Cluster, client: ImageGenClient) -> None:
    items = [make() for make in UNREADABLE.values() for _ in range(5)]

    async def put(nc: Client) -> None:
        for item in items:
            await nc.jetstream().publish(f"{NAMES.jobs}.generate", item)

    on_nats(cluster, put)
    until(lambda: waiting(cluster) == 0, 60)
    with_id = [json.loads(item)["job_id"] for item in items if b'"kind": "train"' in item or b'"mode": null' in item]
    for job_id in with_id:
        state = client.job(job_id)
        assert state.status == "failed"
        assert state.error
        assert "no worker could handle the job" in state.error.message


SKEWED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a field of a newer version": lambda state: {**state, "palette": ["red"], "images": [{**IMAGE, "hue": 1}]},
    "a status of a newer version": lambda state: {**state, "status": "paused"},
    "a field of another type": lambda state: {**state, "attempts": "many"},
    "a field that is missing": lambda state: {name: value for name, value in state.items() if name != "submitted_at"},
    "a list": lambda _: [],
    "null": lambda _: None,
}
IMAGE = {"bucket": "b", "name": "a/0.png", "size": 1, "digest": "SHA-256=x"}


@pytest.mark.parametrize("kind", SKEWED)
def test_a_record_of_another_version_hides_no_other_job(cluster: Cluster, client: ImageGenClient, kind: str) -> None:
    job_id = submit(client, color=3)
    state = ended(client, job_id)
    skewed = json.dumps(SKEWED[kind](json.loads(state.model_dump_json()))).encode()

    async def put(nc: Client) -> None:
        await (await nc.jetstream().key_value(NAMES.states)).put(job_id, skewed)

    on_nats(cluster, put)
    page = requests.get(f"{client.url}/v1/jobs", timeout=20)
    assert page.status_code == 200, page.text
    assert len(page.json()["jobs"]) > 1
    one = requests.get(f"{client.url}/v1/jobs/{job_id}", timeout=20)
    if kind == "a field of a newer version":
        assert one.status_code == 200
        assert JobState.model_validate(one.json()).status == "done"
    else:
        assert one.status_code == 503
        assert one.json()["error"]["code"] == "unreadable_record"
        assert page.json()["unreadable"] >= 1


def test_a_nats_server_that_has_lost_its_stores_gets_new_ones(cluster: Cluster, client: ImageGenClient) -> None:
    ended(client, submit(client, color=5))
    nats = cluster.processes["nats"]
    nats.kill()
    shutil.rmtree(cluster.folder / "nats")
    nats.start()
    cluster.wait_nats()
    with cluster.ready(timeout_s=30) as again:
        job_id = submit(again, color=6)
        assert ended(again, job_id, 30).status == "done"
        assert [state.job_id for state in again.jobs()] == [job_id]


def test_workers_that_get_no_jobs_make_the_service_unready_and_say_why(
    cluster: Cluster, client: ImageGenClient
) -> None:
    async def delete(nc: Client) -> None:
        js = nc.jetstream()
        # Nobody may take jobs beside this one, and it takes them all.
        other = ConsumerConfig(durable_name="other", filter_subject=f"{NAMES.jobs}.>", ack_wait=15)
        async with asyncio.timeout(30):
            while True:  # The workers make theirs anew at once.
                for info in await js.consumers_info(NAMES.stream):
                    with contextlib.suppress(NotFoundError):
                        await js.delete_consumer(NAMES.stream, info.name)
                with contextlib.suppress(BadRequestError):
                    await js.add_consumer(NAMES.stream, other)
                    return

    async def heal(nc: Client) -> None:
        await nc.jetstream().delete_consumer(NAMES.stream, "other")

    on_nats(cluster, delete)
    try:
        answer = until(lambda: _unready(client), 30)
        assert "no worker takes jobs: worker" in answer
    finally:
        on_nats(cluster, heal)
    cluster.ready(timeout_s=30).close()


def _unready(client: ImageGenClient) -> str:
    answer = requests.get(f"{client.url}/readyz", timeout=20)
    return "" if answer.status_code == 200 else answer.json()["error"]["message"]


def test_a_worker_whose_disk_is_nearly_full_takes_no_jobs_and_says_so(
    installation: Installation, tmp_path: Path
) -> None:
    cluster = Cluster(tmp_path / "small", installation)
    try:
        cluster.wait_nats()
        cluster.gateway()
        cluster.secrets = {"IMAGEGEN_DISK_FOLDERS": str(tmp_path), "IMAGEGEN_MIN_FREE_DISK_BYTES": str(10**18)}
        cluster.worker(cluster.stand_in())
        with cluster.client() as client:
            until(lambda: _listens(client), 60)
            job_id = client.submit("x", mode=MODE).job_id
            answer = until(lambda: "free space" in (said := _unready(client)) and said, 30)
            assert f"no worker takes jobs: worker worker: no job is taken: the disk of {tmp_path}" in answer
            assert client.job(job_id).status == "queued"
    finally:
        cluster.close()


def _listens(client: ImageGenClient) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"{client.url}/v1/model-info", timeout=20).status_code == 200
    return False
