"""The gateway alone on a real nats-server: what it answers while there is no worker, too much work, or no right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge.api.app import make_app
from bridge.broker.connection import subscribed
from bridge.broker.jobs import JobQueue
from bridge.names import Names
from bridge.settings import Settings
from tests.bridge.conftest import MAX_PENDING
from tests.bridge.gateway.test_resolve import MODELS

BODY = {"prompt": "a cat"}
Start = Callable[..., Awaitable[TestClient]]


@pytest.fixture
async def start(nats_url: str, tmp_path: Path, queue: JobQueue) -> AsyncIterator[Start]:
    """Open a gateway with some settings."""
    opened: list[TestClient] = []

    async def open_gateway(**settings: Any) -> TestClient:
        app = make_app(Settings(state_dir=tmp_path, max_pending=MAX_PENDING, **settings), nats_url)
        client = TestClient(TestServer(app))
        await client.start_server()
        opened.append(client)
        return client

    yield open_gateway
    for client in opened:
        await client.close()


@pytest.fixture
async def models(nc: Client) -> None:
    """What a worker says of its models, without the worker."""

    async def answer(msg: Msg) -> None:
        await msg.respond(MODELS.model_dump_json().encode())

    await nc.subscribe(Names().model_info, cb=answer)
    await subscribed(nc)


async def test_without_a_worker_it_serves_and_is_not_ready(start: Start) -> None:
    gateway = await start()
    assert (await gateway.get("/healthz")).status == 200
    for answer in (await gateway.get("/readyz"), await gateway.post("/v1/generate-image", json=BODY)):
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "5"
        assert (await answer.json())["error"]["code"] == "unavailable"


@pytest.mark.usefixtures("models")
async def test_a_job_that_takes_too_long_is_answered_with_its_id(start: Start) -> None:
    gateway = await start(job_timeout_s=0.3)
    answer = await gateway.post("/v1/generate-image", json=BODY)
    assert answer.status == 504
    message = (await answer.json())["error"]["message"]
    job_id = message.split()[1]
    assert (await (await gateway.get(f"/v1/jobs/{job_id}")).json())["status"] == "queued"


@pytest.mark.usefixtures("models")
async def test_a_full_queue_is_said_with_when_to_come_back(start: Start) -> None:
    gateway = await start()
    for _ in range(MAX_PENDING):
        assert (await gateway.post("/v1/jobs", json=BODY)).status == 202
    answer = await gateway.post("/v1/jobs", json=BODY)
    assert answer.status == 429
    assert answer.headers["Retry-After"]
    assert (await answer.json())["error"]["code"] == "queue_full"


@pytest.mark.usefixtures("models")
async def test_a_queued_job_is_cancelled_and_its_waiter_told(start: Start) -> None:
    gateway = await start()
    job_id = "0d4c1d3a-3a3d-4b9f-8a51-0b2f3c4d5e6f"
    waiter = asyncio.create_task(gateway.post("/v1/generate-image", json={**BODY, "job_id": job_id}))
    while (await gateway.get(f"/v1/jobs/{job_id}")).status != 200:
        await asyncio.sleep(0.02)
    assert (await (await gateway.delete(f"/v1/jobs/{job_id}")).json())["status"] == "cancelled"
    assert (await waiter).status == 409


async def test_a_service_with_a_token_asks_for_it(start: Start) -> None:
    gateway = await start(token="open sesame")
    assert (await gateway.get("/v1/modes")).status == 401
    wrong = await gateway.get("/v1/modes", headers={"Authorization": "Bearer simsim"})
    assert wrong.status == 401
    assert (await wrong.json())["error"]["code"] == "unauthorized"
    right = await gateway.get("/v1/modes", headers={"Authorization": "Bearer open sesame"})
    assert right.status == 200
    assert (await gateway.get("/healthz")).status == 200


async def test_a_name_that_somebody_else_pointed_here_is_refused(start: Start) -> None:
    gateway = await start()
    assert (await gateway.get("/v1/modes", headers={"Host": "evil.example:8005"})).status == 403
    assert (await gateway.get("/v1/modes", headers={"Host": "localhost:8005"})).status == 200


@pytest.mark.parametrize(
    "headers", [{"Host": "127.0.0.1:x"}, {"Host": "[::"}, {"Origin": "http://["}, {"Origin": "null"}]
)
async def test_a_header_that_is_no_address_is_refused_in_the_envelope(start: Start, headers: dict[str, str]) -> None:
    answer = await (await start()).get("/v1/modes", headers=headers)
    assert answer.status == 403
    assert (await answer.json())["error"]["code"] == "foreign_origin"


async def test_events_of_an_unknown_job_wait_for_it(start: Start, models: None) -> None:
    gateway = await start()
    job_id = "1d4c1d3a-3a3d-4b9f-8a51-0b2f3c4d5e6f"
    async with gateway.ws_connect(f"/v1/jobs/{job_id}/events") as socket:
        await gateway.post("/v1/jobs", json={**BODY, "job_id": job_id})
        await gateway.delete(f"/v1/jobs/{job_id}")
        assert (await socket.receive_json(timeout=30))["type"] == "unknown"
        event = await socket.receive_json(timeout=30)
        assert event["type"] == "cancelled"
        assert event["state"]["job_id"] == job_id
        assert (await socket.receive(timeout=30)).data in (1000, None)
    async with gateway.ws_connect(f"/v1/jobs/{job_id}/events") as late:
        assert (await late.receive_json(timeout=30))["type"] == "cancelled"
