"""Bodies that are being read take a bounded amount of memory in all, and none once their job is queued."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from aiohttp.test_utils import TestClient

from tests.bridge.house import BODY, House

BODY_BYTES = 4000
HEADERS = {"Content-Type": "application/json"}


def body(**more: object) -> bytes:
    data = json.dumps({**BODY, **more}).encode()
    return data[:-1] + b" " * (BODY_BYTES - len(data)) + data[-1:]


async def post(gateway: TestClient, path: str = "/v1/jobs", **more: object) -> tuple[int, dict]:
    answer = await gateway.post(path, data=body(**more), headers=HEADERS)
    return answer.status, {**await answer.json(), "retry_after": answer.headers.get("Retry-After")}


async def test_bodies_that_are_read_at_once_are_bounded_together(house: House) -> None:
    gateway = await house.gateway(max_bodies_bytes=int(1.5 * BODY_BYTES))
    begun, rest = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield body()[: BODY_BYTES // 2 + 1000]
        begun.set()
        await rest.wait()
        yield body()[BODY_BYTES // 2 + 1000 :]

    slow = asyncio.create_task(gateway.post("/v1/jobs", data=slowly(), headers=HEADERS))  # its length is not announced
    await begun.wait()
    async with asyncio.timeout(10):
        while (refused := await post(gateway))[0] != 429:
            assert refused[0] == 202  # the other one's bytes are still on their way
    assert refused[1]["error"]["code"] == "too_many_bodies"
    assert "max_bodies_bytes" in refused[1]["error"]["message"]
    assert int(refused[1]["retry_after"]) >= 1
    rest.set()
    assert (await slow).status == 202
    assert (await post(gateway))[0] == 202


async def test_a_body_over_the_whole_bound_is_read_when_it_is_alone(house: House) -> None:
    gateway = await house.gateway(max_bodies_bytes=BODY_BYTES // 2)
    assert (await post(gateway))[0] == 202
    assert (await post(gateway))[0] == 202


async def test_a_request_that_waits_for_its_job_keeps_no_room(house: House) -> None:
    gateway, worker = await house.gateway(max_bodies_bytes=int(1.5 * BODY_BYTES)), await house.worker()
    waiting = asyncio.create_task(post(gateway, "/v1/generate-image"))
    job = await worker.take()
    assert (await post(gateway))[0] == 202
    await worker.finish(job.job_id, [b"image"])
    assert (await waiting)[0] == 200
