"""A trace through the real service: caller, gateway, worker, and the log lines of both."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from aiohttp.test_utils import TestClient, TestServer
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bridge.api.app import make_app
from bridge.broker.connection import connect
from bridge.broker.jobs import JobQueue
from bridge.comfyui.client import ComfyUI
from bridge.modes.library import SHIPPED_WORKFLOWS, ModeLibrary
from bridge.settings import Settings
from bridge.stopping import stop
from bridge.worker.worker import Worker
from tests.service.conftest import Service

ID = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {"traceparent": f"00-{ID}-00f067aa0ba902b7-01"}
SMALL: dict[str, Any] = {"width": 128, "height": 96, "num_inference_steps": 2}
seeds = itertools.count(9_000)


def test_gateway_and_worker_log_the_trace_with_every_line_of_the_job(service: Service) -> None:
    body = {"prompt": "a cat", "seed": next(seeds), **SMALL}
    answer = requests.post(service.url + "/v1/generate-image", json=body, headers=HEADERS, timeout=120)
    job_id = answer.json()["job_id"]
    state = requests.get(f"{service.url}/v1/jobs/{job_id}", timeout=10).json()
    assert state["traceparent"][3:35] == ID
    for name in ("gateway.log", "worker.log"):
        deadline = time.monotonic() + 10
        while not (lines := [line for line in _lines(service.settings.logs / name) if f"job_id {job_id}" in line]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        asked = "GET /v1/jobs/{job_id}"  # A request of its own, which came without a trace.
        assert all(f"trace_id {ID}" in line for line in lines if asked not in line), lines


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


async def test_the_job_on_the_worker_is_a_span_below_the_request(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(otel, "get_tracer", provider.get_tracer)
    settings = Settings(state_dir=tmp_path, nats_prefix="traced", job_store_bytes=2**24, image_store_bytes=2**25)
    settings.make_directories()
    nc = await connect(service.nats_url, "test")
    gateway = TestClient(TestServer(make_app(settings, service.nats_url)))
    await gateway.start_server()
    queue = await JobQueue.open(nc, max_pending=4, names=settings.names, retention=settings.retention)
    async with ComfyUI(service.comfyui_url) as comfy:
        worker = asyncio.create_task(Worker(queue, comfy, ModeLibrary([SHIPPED_WORKFLOWS]), "own").run())
        try:
            async with asyncio.timeout(30):
                while (await gateway.get("/readyz")).status != 200:
                    await asyncio.sleep(0.1)
            body = {"prompt": "a cat", "seed": next(seeds), **SMALL}
            answer = await gateway.post("/v1/generate-image", json=body, headers=HEADERS)
            job_id = (await answer.json())["job_id"]
            bad = await gateway.post("/v1/generate-image", json={**body, "width": 100}, headers=HEADERS)
            assert (answer.status, bad.status) == (200, 422)
            async with asyncio.timeout(10):
                while not (jobs := [span for span in exporter.get_finished_spans() if span.name == "job generate"]):
                    await asyncio.sleep(0.05)
        finally:
            await stop([worker])
            await gateway.close()
            await nc.close()
    request = next(span for span in exporter.get_finished_spans() if span.name == "POST /v1/generate-image")
    [job] = jobs
    above, own = request.get_span_context(), job.get_span_context()
    assert job.parent
    assert above
    assert own
    assert job.parent.span_id == above.span_id
    assert f"{own.trace_id:032x}" == ID
    assert job.kind is otel.SpanKind.CONSUMER
    facts = dict(job.attributes or {})
    assert (facts["imagegen.job_id"], facts["imagegen.status"], facts["imagegen.attempts"]) == (job_id, "done", 1)
    assert "a cat" not in job.to_json()
