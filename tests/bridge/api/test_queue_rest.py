"""The queue as a whole, over REST and NATS: pause, resume, cancel all, priorities."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from nats.aio.client import Client

from bridge.names import Names
from tests.bridge.api.test_jobs_rest import job_of, until
from tests.bridge.house import House, submit


async def call(gateway: TestClient, method: str, path: str, status: int = 200) -> dict[str, Any]:
    answer = await gateway.request(method, path)
    assert answer.status == status, await answer.text()
    return await answer.json()


async def queue_is(gateway: TestClient, **expected: Any) -> dict[str, Any]:
    """Ask for the queue until it is as expected: the list of jobs follows the broker, a moment behind."""
    async with asyncio.timeout(10):
        while True:
            state = await call(gateway, "GET", "/v1/queue")
            if all(state[name] == value for name, value in expected.items()):
                return state
            await asyncio.sleep(0.05)


async def test_a_pause_is_told_by_everything_and_ends(house: House) -> None:
    gateway = await house.gateway()
    assert (await call(gateway, "GET", "/readyz"))["status"] == "ready"
    paused = await call(gateway, "POST", "/v1/queue/pause?reason=new+card")
    assert (paused["paused"], paused["by"], paused["reason"]) == (True, "127.0.0.1", "new card")
    assert paused["since"] > 1e9
    again = await call(gateway, "POST", "/v1/queue/pause?reason=other")
    assert (again["since"], again["reason"]) == (paused["since"], "new card")

    refused = await call(gateway, "GET", "/readyz", 503)
    assert refused["error"]["code"] == "paused"
    assert "new card" in refused["error"]["message"]
    assert "/v1/queue/resume" in refused["error"]["message"]

    job_id = await submit(gateway)  # Accepted all the same, and the state says that it waits for the end of the pause.
    job = await until(gateway, job_id, position=0)
    assert (job["paused"], job["wait_seconds"]) == (True, None)
    await queue_is(gateway, paused=True, waiting=1, running=0)

    resumed = await call(gateway, "POST", "/v1/queue/resume")
    assert (resumed["paused"], resumed["since"]) == (False, None)
    assert (await call(gateway, "GET", "/readyz"))["status"] == "ready"
    assert (await job_of(gateway, job_id))["paused"] is None
    await call(gateway, "POST", "/v1/queue/resume")


async def test_a_pause_holds_at_every_gateway_and_outlives_them(house: House) -> None:
    first, second = await house.gateway(), await house.gateway()
    await call(first, "POST", "/v1/queue/pause")
    async with asyncio.timeout(1):  # It is told at once.
        while (await second.get("/readyz")).status == 200:
            await asyncio.sleep(0.02)
    await house.stop(first)
    await house.stop(second)
    bucket = await house.nc.jetstream().stream_info(f"KV_{house.settings().names.control}")
    assert not bucket.config.max_age  # However long it lasts.
    third = await house.gateway()
    assert (await call(third, "GET", "/v1/queue"))["paused"]
    assert (await call(third, "GET", "/readyz", 503))["error"]["code"] == "paused"


@pytest.mark.parametrize("text", ["x" * 501, "é" * 501])
async def test_a_reason_has_a_limit(house: House, text: str) -> None:
    gateway = await house.gateway()
    answer = await gateway.post("/v1/queue/pause", params={"reason": text})
    assert answer.status == 422
    assert "501 characters, at most 500" in (await answer.json())["error"]["message"]
    assert not (await call(gateway, "GET", "/v1/queue"))["paused"]


async def test_all_waiting_jobs_are_cancelled_and_running_ones_if_asked(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    running = await submit(gateway)
    await worker.take()
    await worker.start(running)
    waiting = [await submit(gateway) for _ in range(3)]
    await queue_is(gateway, waiting=3, running=1)
    counts = await call(gateway, "POST", "/v1/queue/cancel")
    assert {name: count for name, count in counts.items() if count} == {"dequeued": 3}
    assert [(await job_of(gateway, job_id))["status"] for job_id in waiting] == ["cancelled"] * 3
    assert (await job_of(gateway, running))["status"] == "running"

    asked = asyncio.create_task(call(gateway, "POST", "/v1/queue/cancel?running=true"))
    async with asyncio.timeout(10):
        while not (await job_of(gateway, running))["cancel_requested"]:
            await asyncio.sleep(0.02)
    await worker.cancelled(running)
    counts = await asked
    assert {name: count for name, count in counts.items() if count} == {"interrupted": 1}
    counts = await call(gateway, "POST", "/v1/queue/cancel?running=true")
    assert not any(counts.values())


async def test_an_unclear_wish_cancels_nothing(house: House) -> None:
    gateway = await house.gateway()
    job_id = await submit(gateway)
    answer = await gateway.post("/v1/queue/cancel?running=maybe")
    assert answer.status == 422
    assert (await answer.json())["error"]["field"] == "running"
    assert (await job_of(gateway, job_id))["status"] == "queued"


async def test_over_nats_the_same(house: House, nc: Client) -> None:
    gateway, names = await house.gateway(), Names(house.prefix)

    async def ask(subject: str, data: bytes = b"") -> dict[str, Any]:
        return json.loads((await nc.request(subject, data, timeout=30)).data)

    job_id = await submit(gateway)
    await queue_is(gateway, waiting=1)
    paused = await ask(f"{names.queue}.pause", b'{"reason": "night"}')
    assert (paused["paused"], paused["by"], paused["reason"], paused["waiting"]) == (True, "NATS", "night", 1)
    assert (await ask(names.queue))["paused"]
    assert not (await ask(f"{names.queue}.resume"))["paused"]
    assert (await ask(f"{names.queue}.cancel", b"{}"))["dequeued"] == 1
    assert (await job_of(gateway, job_id))["status"] == "cancelled"
    for subject, data in (
        (f"{names.queue}.pause", b'{"why": 1}'),
        (f"{names.queue}.cancel", b'{"running": "x"}'),
        (names.unload, b"[]"),
        (names.unload, b'{"model": "schnell"}'),
    ):
        assert (await ask(subject, data))["error"]["code"] == "invalid_request"


async def test_places_and_waits_follow_the_priority(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    jobs = {priority: await submit(gateway, priority=priority) for priority in ("low", "normal", "high")}
    jobs["default"] = await submit(gateway)
    for priority, position in (("high", 0), ("normal", 1), ("default", 2), ("low", 3)):
        job = await until(gateway, jobs[priority], position=position)
        assert job["priority"] == ("normal" if priority == "default" else priority)
    state = await call(gateway, "GET", "/v1/queue")
    assert state["waiting_by_priority"] == {"high": 1, "normal": 2, "low": 1}
    assert (await worker.take()).job_id == jobs["high"]
    assert (await worker.take()).job_id == jobs["normal"]


@pytest.mark.parametrize("priority", ["urgent", "HIGH", 1, "", ["high"]])
async def test_an_unknown_priority_is_named(house: House, priority: object) -> None:
    gateway = await house.gateway()
    answer = await gateway.post("/v1/jobs", json={"prompt": "x", "mode": "paint", "priority": priority})
    assert answer.status == 422
    error = (await answer.json())["error"]
    assert error["field"] == "priority"
    assert "'high', 'normal' or 'low'" in error["message"]


async def test_no_priority_is_the_normal_one(house: House) -> None:
    gateway = await house.gateway()
    answer = await gateway.post("/v1/jobs", json={"prompt": "x", "mode": "paint", "priority": None})
    assert (answer.status, (await answer.json())["priority"]) == (202, "normal")


async def test_unloading_names_what_it_does_not_know(house: House) -> None:
    gateway = await house.gateway()
    for query, status, code in (
        ("", 503, "unavailable"),
        ("?model_name=nope", 404, "unknown_model"),
        ("?worker_id=nope", 404, "unknown_worker"),
        ("?model_name=", 422, "invalid_request"),
    ):
        assert (await call(gateway, "POST", f"/v1/unload-model{query}", status))["error"]["code"] == code
