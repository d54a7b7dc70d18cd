"""Trace contexts: which are taken, where they go, and the spans that OpenTelemetry's SDK gets."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests
from aiohttp import web
from aiohttp.test_utils import TestServer
from nats.aio.client import Client
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bridge import tracing
from bridge.client import AsyncImageGenClient, ImageGenClient
from bridge.comfyui.client import ComfyUI
from bridge.names import Names
from bridge.tracing import Trace
from tests.bridge.gateway.test_webhooks import ALLOWED, Receiver
from tests.bridge.gateway.test_webhooks import receiver as receiver
from tests.bridge.gateway_process import models_of, running_gateway
from tests.bridge.house import BODY, House, submit

ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{ID}-00f067aa0ba902b7-01"
STATE = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"
HEADERS = {"traceparent": PARENT, "tracestate": STATE}


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        (PARENT, PARENT),
        (f"  {PARENT} ", PARENT),
        (PARENT[:-2] + "00", PARENT[:-2] + "00"),
        ("cc" + PARENT[2:] + "-what-the-future-holds", PARENT),  # A later version, read as far as it is known.
        ("cc" + PARENT[2:], PARENT),
        (PARENT + "-more", None),  # This version has four fields.
        ("ff" + PARENT[2:], None),
        (PARENT.upper(), None),
        (PARENT.replace(ID, "0" * 32), None),
        (PARENT.replace("00f067aa0ba902b7", "0" * 16), None),
        (PARENT[:-1], None),
        (PARENT.replace("-", "_"), None),
        ("cc" + PARENT[2:] + "-" + "x" * 300, None),
        (PARENT + "\n", PARENT),
        (PARENT + "\r\nX: y", None),
        ("", None),
        (None, None),
    ],
)
def test_a_context_is_taken_or_ignored(text: str | None, taken: str | None) -> None:
    found = Trace.read(text, STATE)
    assert (found.parent if found else None) == taken


@pytest.mark.parametrize("state", ["", "x" * 513, "a=b\r\nX: y", "a=\u00e9"])
def test_a_state_that_cannot_be_passed_on_is_left_out(state: str) -> None:
    found = Trace.read(PARENT, state)
    assert found
    assert found.headers() == {"traceparent": PARENT}


@pytest.fixture(params=["api only", "not installed"])
def no_spans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry without a provider of spans, and not there at all."""
    if request.param == "not installed":
        monkeypatch.setattr(tracing, "otel", None)


@pytest.mark.usefixtures("no_spans")
async def test_a_context_goes_with_the_job_and_its_webhook(house: House, receiver: Receiver, nc: Client) -> None:
    gateway, worker = await house.gateway(**ALLOWED), await house.worker()
    answer = await gateway.post("/v1/jobs", json={**BODY, "callback_url": receiver.url}, headers=HEADERS)
    assert (await answer.json())["traceparent"] == PARENT
    job = await worker.take()
    assert (job.traceparent, job.tracestate) == (PARENT, STATE)
    await worker.finish(job.job_id)
    await receiver.calls(1)
    headers, _ = receiver.heard[0]
    assert (headers["traceparent"], headers["tracestate"]) == (PARENT, STATE)

    body = json.dumps(BODY).encode()
    await nc.request(Names(house.prefix).submit, body, timeout=30, headers=HEADERS)
    assert (await worker.take()).traceparent == PARENT

    for headers in ({}, {"traceparent": "nonsense"}):
        answer = await gateway.post("/v1/jobs", json=BODY, headers=headers)
        assert (answer.status, (await answer.json())["traceparent"]) == (202, None)
        assert (await worker.take()).traceparent is None


async def test_every_line_about_the_request_and_the_job_has_the_trace(nats_url: str, tmp_path: Path) -> None:
    prefix = f"trace{uuid4().hex}"
    async with models_of(nats_url, prefix):
        with running_gateway(nats_url, tmp_path, prefix=prefix) as gateway:
            answer = await asyncio.to_thread(gateway.post, "/v1/jobs", json={"prompt": "a fox"}, headers=HEADERS)
            job_id = answer.json()["job_id"]
            cancelled = await asyncio.to_thread(requests.delete, f"{gateway.url}/v1/jobs/{job_id}", timeout=30)
            assert cancelled.status_code == 200
            for facts in ({"message": "job queued"}, {"route": "/v1/jobs"}, {"message": "job cancelled"}):
                assert gateway.line(**facts)["trace_id"] == ID, facts


@pytest.fixture
async def comfyui() -> AsyncIterator[tuple[str, list[dict[str, str]]]]:
    """A server that keeps the headers of what it is asked."""
    heard: list[dict[str, str]] = []

    async def handle(request: web.Request) -> web.Response:
        heard.append({name.lower(): value for name, value in request.headers.items()})
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    server = TestServer(app)
    await server.start_server()
    yield str(server.make_url("/")).rstrip("/"), heard
    await server.close()


@pytest.mark.usefixtures("no_spans")
async def test_comfyui_is_asked_with_the_context_of_the_job(comfyui: tuple[str, list[dict[str, str]]]) -> None:
    url, heard = comfyui
    async with ComfyUI(url) as client:
        heard.clear()
        with tracing.span("job", "consumer", Trace.read(PARENT, STATE)):
            await client.get_json("/in-a-job")
        await client.get_json("/beside-it")
    asked = [each for each in heard if "upgrade" not in each]  # The websocket is nobody's.
    assert [each.get("traceparent") for each in asked] == [PARENT, None]
    assert asked[0]["tracestate"] == STATE


def test_the_command_passes_on_what_its_environment_says(tmp_path: Path) -> None:
    script = (
        "import sys; from bridge import tracing; from bridge.commands import jobs;"
        "from bridge.commands.main import main;"
        "jobs.jobs_command = lambda args: print(tracing.headers()['traceparent']) or 0;"
        "sys.exit(main(['jobs']))"
    )
    env = {"TRACEPARENT": PARENT, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", script], env=env, cwd=root, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == PARENT, run.stderr


# -- spans ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, ReadableSpan]]:
    """The spans that ended, by name, as the SDK exports them."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(otel, "get_tracer", provider.get_tracer)
    return lambda: {span.name: span for span in exporter.get_finished_spans()}


def span_id(parent: str | None) -> str:
    assert parent
    return parent[36:52]


def id_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context
    assert f"{context.trace_id:032x}" == ID
    return f"{context.span_id:016x}"


def parent_of(span: ReadableSpan) -> str | None:
    return f"{span.parent.span_id:016x}" if span.parent else None


async def test_request_and_webhook_are_spans_of_the_callers_trace(
    house: House, receiver: Receiver, spans: Callable[[], dict[str, ReadableSpan]]
) -> None:
    gateway, worker = await house.gateway(**ALLOWED), await house.worker()
    answer = await gateway.post("/v1/jobs", json={**BODY, "callback_url": receiver.url}, headers=HEADERS)
    assert answer.status == 202
    job = await worker.take()
    await worker.finish(job.job_id)
    await receiver.calls(1)
    async with asyncio.timeout(10):
        while "webhook" not in spans():
            await asyncio.sleep(0.02)
    request, webhook = spans()["POST /v1/jobs"], spans()["webhook"]
    assert (request.kind, webhook.kind) == (otel.SpanKind.SERVER, otel.SpanKind.CLIENT)
    assert parent_of(request) == span_id(PARENT)
    assert (request.attributes or {})["imagegen.status"] == 202
    # The job belongs to the request, and the webhook to the job.
    assert span_id(job.traceparent) == id_of(request) == parent_of(webhook)
    assert job.tracestate == STATE
    assert span_id(receiver.heard[0][0]["traceparent"]) == id_of(webhook)
    assert (webhook.attributes or {})["imagegen.job_id"] == job.job_id


async def test_without_a_context_a_request_begins_a_trace_and_probes_do_not(
    house: House, spans: Callable[[], dict[str, ReadableSpan]]
) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    await submit(gateway)
    job = await worker.take()
    assert job.traceparent
    await gateway.get("/healthz")
    await gateway.get("/v1/jobs/none")
    assert set(spans()) == {"POST /v1/jobs", "GET /v1/jobs/{job_id}"}
    assert parent_of(spans()["POST /v1/jobs"]) is None


async def test_no_span_holds_a_text_of_the_caller(
    house: House, spans: Callable[[], dict[str, ReadableSpan]], nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await house.gateway()
    prompt = "a lighthouse that nobody should hear of"

    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(prompt)

    monkeypatch.setattr("bridge.gateway.generation.Generation.accept", fail)
    assert (await gateway.post("/v1/jobs", json={**BODY, "prompt": prompt})).status == 500
    await nc.request(Names(house.prefix).submit, json.dumps({**BODY, "prompt": prompt}).encode(), timeout=10)
    found = spans()
    assert set(found) == {"POST /v1/jobs", "NATS submit"}
    for span in found.values():
        assert span.status.status_code is otel.StatusCode.ERROR
        assert "lighthouse" not in span.to_json()


async def test_an_error_that_leaves_a_span_is_named_by_its_class_alone(
    spans: Callable[[], dict[str, ReadableSpan]],
) -> None:
    with pytest.raises(ValueError, match="lighthouse"), tracing.span("job", "consumer", Trace.read(PARENT)):
        raise ValueError("a lighthouse")
    span = spans()["job"]
    assert (span.status.status_code, span.status.description) == (otel.StatusCode.ERROR, "ValueError")
    assert "lighthouse" not in span.to_json()


async def test_the_clients_pass_on_the_span_around_them(
    house: House, spans: Callable[[], dict[str, ReadableSpan]]
) -> None:
    gateway = await house.gateway()
    url = str(gateway.make_url("/"))
    with otel.get_tracer("a program").start_as_current_span("outer") as outer:
        own = f"{outer.get_span_context().trace_id:032x}"
        async with AsyncImageGenClient(url) as client:
            first = await client.submit("a fox", mode="paint")

        def submit_in_thread() -> Any:
            with ImageGenClient(url) as client:
                return client.submit("a fox", mode="paint")

        second = await asyncio.to_thread(submit_in_thread)
    for job in (first, second):
        assert job.traceparent
        assert job.traceparent[3:35] == own


async def test_spans_are_sent_where_the_variables_say(nats_url: str, tmp_path: Path) -> None:
    received: list[bytes] = []

    async def collect(request: web.Request) -> web.Response:
        received.append(await request.read())
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", collect)
    collector = TestServer(app)
    await collector.start_server()
    prefix = f"trace{uuid4().hex}"
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": str(collector.make_url("/")).rstrip("/"),
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    try:
        with running_gateway(nats_url, tmp_path, prefix=prefix, **environment) as gateway:
            await asyncio.to_thread(gateway.get, "/v1/queue", headers=HEADERS)
            async with asyncio.timeout(20):
                while not received:
                    await asyncio.sleep(0.05)
    finally:
        await collector.close()
    assert b"imagegen-gateway" in received[0]
    assert b"GET /v1/queue" in received[0]
    assert bytes.fromhex(ID) in received[0]
