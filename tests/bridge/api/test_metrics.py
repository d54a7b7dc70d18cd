"""/metrics over a real gateway: what Prometheus would read, with labels that nobody can blow up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from uuid import uuid4

import pytest
import requests
import websocket
from nats.aio.client import Client
from prometheus_client.parser import text_string_to_metric_families

from bridge import __version__
from bridge.api.metrics import MAX_NAMES, Labels
from bridge.broker.jobs import JobQueue, StoredState
from bridge.contract import JobState, JobStatus, WorkerStatus
from tests.bridge.gateway_process import BODY, GatewayProcess, models_of, running_gateway

PREFIX = "test.metrics"
MODE, MODEL = "text-to-image", "schnell"
Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def gateway(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("metrics")
    with running_gateway(nats_url, folder, "--max-pending", "50", prefix=PREFIX) as running:
        yield running


@pytest.fixture
async def nc(nats_url: str, gateway: GatewayProcess) -> AsyncIterator[Client]:
    async with models_of(nats_url, PREFIX) as client:
        yield client
        await client.jetstream().purge_stream(gateway.names.stream)


def read(gateway: GatewayProcess) -> Figures:
    answer = gateway.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(figures: Figures, name: str, **labels: str) -> float | None:
    return figures.get((name, frozenset(labels.items())))


async def until(gateway: GatewayProcess, right: Callable[[Figures], bool]) -> Figures:
    """The figures once they are right: what comes over NATS takes a moment."""
    deadline = time.monotonic() + 15
    while True:
        figures = await asyncio.to_thread(read, gateway)
        if right(figures):
            return figures
        assert time.monotonic() < deadline, figures
        await asyncio.sleep(0.05)


async def end(queue: JobQueue, job_id: str, status: JobStatus, *, waited: float, ran: float) -> JobState:
    """What a worker does with a job, without the images."""
    stored = await queue.stored_state(job_id)
    began = stored.state.submitted_at + waited
    ended = stored.state.moved(status, started_at=began, finished_at=began + ran)
    assert await queue.advance(StoredState(ended, stored.revision))
    await queue.announce(ended)
    return ended


def test_what_runs_is_told(gateway: GatewayProcess) -> None:
    figures = read(gateway)
    build = [dict(labels) for name, labels in figures if name == "imagegen_build_info"]
    assert build[0]["version"] == __version__
    assert value(figures, "imagegen_nats_up") == 1
    assert any(name == "process_resident_memory_bytes" for name, _ in figures)


async def test_jobs_are_counted_from_their_acceptance_to_their_end(gateway: GatewayProcess, nc: Client) -> None:
    queue = await JobQueue.open(nc, max_pending=50, names=gateway.names)
    ids = [(await asyncio.to_thread(gateway.post, "/v1/jobs", json=BODY)).json()["job_id"] for _ in range(3)]
    labels = {"mode": MODE, "model": MODEL}
    figures = await until(gateway, lambda now: value(now, "imagegen_jobs", state="queued", **labels) == 3)
    assert value(figures, "imagegen_queue_depth") == 3
    assert value(figures, "imagegen_jobs_accepted_total", **labels) == 3
    await end(queue, ids[0], JobStatus.DONE, waited=2.0, ran=7.0)
    await end(queue, ids[1], JobStatus.FAILED, waited=0.0, ran=1.0)
    await asyncio.to_thread(requests.delete, f"{gateway.url}/v1/jobs/{ids[2]}", timeout=20)
    figures = await until(
        gateway,
        lambda now: (
            value(now, "imagegen_jobs_finished_total", state="cancelled", **labels) == 1
            and value(now, "imagegen_jobs", state="queued", **labels) is None
        ),
    )
    for state in ("done", "failed", "cancelled"):
        assert value(figures, "imagegen_jobs_finished_total", state=state, **labels) == 1
        assert value(figures, "imagegen_jobs", state=state, **labels) == 1
    assert value(figures, "imagegen_job_wait_seconds_sum", mode=MODE) == pytest.approx(2.0)
    assert value(figures, "imagegen_job_run_seconds_sum", **labels) == pytest.approx(7.0)
    assert value(figures, "imagegen_job_run_seconds_bucket", le="5.0", **labels) == 0
    assert value(figures, "imagegen_job_run_seconds_bucket", le="10.0", **labels) == 1


async def test_two_gateways_count_each_end_once(gateway: GatewayProcess, nc: Client, nats_url: str, tmp_path) -> None:
    queue = await JobQueue.open(nc, max_pending=50, names=gateway.names)
    with running_gateway(nats_url, tmp_path, "--max-pending", "50", prefix=PREFIX) as other:

        def done(figures: Figures) -> float:
            return value(figures, "imagegen_jobs_finished_total", state="done", mode=MODE, model=MODEL) or 0

        async def total() -> float:
            return sum([done(await asyncio.to_thread(read, each)) for each in (gateway, other)])

        before = await total()
        for _ in range(6):
            answer = await asyncio.to_thread(other.post, "/v1/jobs", json=BODY)
            await end(queue, answer.json()["job_id"], JobStatus.DONE, waited=0.1, ran=0.1)
        await nc.flush()
        deadline = time.monotonic() + 15
        while await total() < before + 6:
            assert time.monotonic() < deadline
        assert await total() == before + 6


async def test_workers_are_shown_as_they_report(gateway: GatewayProcess, nc: Client) -> None:
    status = WorkerStatus(
        worker_id="gpu-1", comfyui_up=True, vram_total_bytes=8 * 2**30, vram_free_bytes=2**30, reconnects=3,
        redeliveries=2, running=["a", "b"], loaded_models=["schnell"], started_at=1700000000.0,
    )  # fmt: skip
    down = status.model_copy(update={"worker_id": "cpu-1", "comfyui_up": False, "vram_total_bytes": None})
    for each in (status, down):
        await nc.publish(f"{gateway.names.workers}.{each.worker_id}", each.model_dump_json().encode())
    await nc.publish(f"{gateway.names.workers}.junk", b'{"worker_id": 7}')
    figures = await until(gateway, lambda now: value(now, "imagegen_worker_up", worker="cpu-1") == 1)
    for name, figure in (
        ("imagegen_worker_up", 1),
        ("imagegen_comfyui_up", 1),
        ("imagegen_vram_total_bytes", 8 * 2**30),
        ("imagegen_vram_free_bytes", 2**30),
        ("imagegen_worker_reconnects_total", 3),
        ("imagegen_worker_redeliveries_total", 2),
        ("imagegen_worker_jobs", 2),
        ("imagegen_worker_models_loaded", 1),
    ):
        assert value(figures, name, worker="gpu-1") == figure, name
    assert value(figures, "imagegen_comfyui_up", worker="cpu-1") == 0
    assert value(figures, "imagegen_vram_total_bytes", worker="cpu-1") is None


async def test_requests_are_counted_by_route_and_status(gateway: GatewayProcess, nc: Client) -> None:
    for path in (f"/v1/jobs/{uuid4()}", f"/v1/jobs/{uuid4()}", "/v1/modes", "/wp-login.php", "/a/b/c"):
        await asyncio.to_thread(gateway.get, path)
    await asyncio.to_thread(requests.request, "PROPFIND", gateway.url + "/coffee", timeout=20)
    await nc.request(gateway.names.request, b"{}", timeout=20)
    figures = await until(gateway, lambda now: value(now, "imagegen_nats_requests_total", code="invalid_request") == 1)
    route = {"method": "GET", "route": "/v1/jobs/{job_id}", "status": "404"}
    assert value(figures, "imagegen_http_requests_total", **route) == 2
    assert value(figures, "imagegen_http_requests_total", method="GET", route="(none)", status="404") == 2
    assert value(figures, "imagegen_http_requests_total", method="OTHER", route="(none)", status="404") == 1
    assert value(figures, "imagegen_http_request_seconds_count", route="/v1/modes") == 1
    shown = str(figures)
    assert "wp-login" not in shown
    assert "PROPFIND" not in shown


async def test_event_readers_are_counted_while_they_read(gateway: GatewayProcess) -> None:
    url = f"ws://127.0.0.1:{gateway.port}/v1/jobs/{uuid4()}/events"
    readers = [
        await asyncio.to_thread(websocket.create_connection, url, timeout=10, suppress_origin=True) for _ in range(2)
    ]
    route = {"route": "/v1/jobs/{job_id}/events"}
    assert value(read(gateway), "imagegen_waits", **route) == 2
    for reader in readers:
        reader.close()
    await until(gateway, lambda now: value(now, "imagegen_waits", **route) == 0)


async def test_names_that_do_not_exist_never_become_labels(gateway: GatewayProcess, nc: Client) -> None:
    for number in range(5):
        body = BODY | {"mode": f"evil-mode-{number}"}
        await asyncio.to_thread(gateway.post, "/v1/jobs", json=body)
        await asyncio.to_thread(gateway.post, "/v1/jobs", json=BODY | {"model": f"evil-model-{number}"})
    await nc.publish(gateway.names.result, b"{}")
    await nc.flush()
    assert "evil" not in str(await asyncio.to_thread(read, gateway))


def test_labels_are_bounded_in_number() -> None:
    names = Labels()
    labels = {names.label(f"mode-{number}") for number in range(MAX_NAMES + 50)}
    assert len(labels) == MAX_NAMES + 1
    assert names.label("mode-0") == "mode-0"
    assert names.label("one more") == "other"
    assert names.label(None) == ""
