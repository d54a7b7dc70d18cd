"""What a program sees of its jobs over REST: where they stand, lists, images, cancellation, one job for one key."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from typing import Any
from uuid import uuid4

import pytest
from aiohttp.test_utils import TestClient

from bridge.api.http.replies import INDEX
from tests.bridge.house import BODY, HandWorker, House, submit

IMAGE = random.Random(0).randbytes(1024)


async def job_of(gateway: TestClient, job_id: str) -> dict[str, Any]:
    answer = await gateway.get(f"/v1/jobs/{job_id}")
    assert answer.status == 200
    return await answer.json()


async def until(gateway: TestClient, job_id: str, **expected: Any) -> dict[str, Any]:
    """Ask for a job until it is as expected: the list of jobs follows the broker, a moment behind."""
    async with asyncio.timeout(10):
        while True:
            job = await job_of(gateway, job_id)
            if all(job[name] == value for name, value in expected.items()):
                return job
            await asyncio.sleep(0.05)


async def test_an_accepted_job_is_at_its_location_and_with_the_broker(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    answer = await gateway.post("/v1/jobs", json={**BODY, "strength": 0.25})
    assert answer.status == 202
    job = await answer.json()
    assert (await (await gateway.get(answer.headers["Location"])).json())["job_id"] == job["job_id"]
    taken = await worker.take()
    assert (taken.job_id, taken.parameters["strength"]) == (job["job_id"], 0.25)


async def test_a_queued_job_knows_how_many_are_ahead_and_no_wait_that_it_cannot_know(house: House) -> None:
    gateway = await house.gateway()
    ids = [await submit(gateway) for _ in range(3)]
    for position, job_id in enumerate(ids):
        job = await until(gateway, job_id, position=position)
        assert (job["status"], job["wait_seconds"]) == ("queued", 0.0 if position == 0 else None)
    assert (await (await gateway.delete(f"/v1/jobs/{ids[0]}")).json())["status"] == "cancelled"
    await until(gateway, ids[2], position=1)


async def test_the_wait_is_estimated_from_how_long_such_jobs_took(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    first = await submit(gateway)
    await worker.take()
    await worker.finish(first, seconds=40.0)
    running, waiting, behind = [await submit(gateway) for _ in range(3)]
    await worker.take()
    await worker.start(running)
    assert 35 < (await until(gateway, waiting, position=0))["wait_seconds"] <= 40
    assert 75 < (await until(gateway, behind, position=1))["wait_seconds"] <= 80


async def test_a_running_job_tells_its_step_and_a_failed_one_its_cause(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    job_id = await submit(gateway)
    await worker.take()
    await worker.start(job_id)
    await worker.step(job_id, 3, 8)
    async with asyncio.timeout(5):
        while not (job := await job_of(gateway, job_id))["progress"]:
            await asyncio.sleep(0.02)
    assert (job["status"], job["progress"]["phase"]) == ("running", "sample")
    assert (job["progress"]["value"], job["progress"]["maximum"], job["progress"]["seconds_left"]) == (3, 8, 5)
    await worker.fail(job_id, "out_of_memory", "out of memory in node 5; choose a smaller size")
    failed = await job_of(gateway, job_id)
    assert (failed["status"], failed["error"]["code"], failed["progress"]) == ("failed", "out_of_memory", None)


# -- lists ---------------------------------------------------------------------------------------------------------


async def page(gateway: TestClient, **query: Any) -> dict[str, Any]:
    answer = await gateway.get("/v1/jobs", params=query)
    assert answer.status == 200, await answer.text()
    return await answer.json()


async def test_a_list_goes_from_the_newest_to_the_oldest_by_pages_that_neither_repeat_nor_skip(house: House) -> None:
    gateway = await house.gateway()
    ids = [await submit(gateway) for _ in range(5)]
    first = await page(gateway, limit=2)
    assert [job["job_id"] for job in first["jobs"]] == ids[:2:-1]
    late = await submit(gateway)  # What comes meanwhile moves nothing.
    second = await page(gateway, limit=2, cursor=first["next_cursor"])
    third = await page(gateway, limit=2, cursor=second["next_cursor"])
    assert [job["job_id"] for job in second["jobs"] + third["jobs"]] == ids[2::-1]
    assert third["next_cursor"] is None
    assert (await page(gateway, limit=1))["jobs"][0]["job_id"] == late


async def test_a_list_is_filtered_by_state_mode_model_and_time(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    done, waiting = await submit(gateway), await submit(gateway)
    other = await submit(gateway, mode="text-to-image", model="lightning")
    await worker.take()
    await worker.finish(done)
    await until(gateway, done, status="done")

    async def ids(**query: Any) -> list[str]:
        return [job["job_id"] for job in (await page(gateway, **query))["jobs"]]

    async with asyncio.timeout(5):
        while await ids(status="done") != [done]:
            await asyncio.sleep(0.05)
    assert await ids(status="queued") == [other, waiting]
    assert await ids(mode="text-to-image") == [other]
    assert await ids(model="lightning") == [other]
    submitted = (await job_of(gateway, waiting))["submitted_at"]
    assert await ids(since=str(submitted)) == [other, waiting]
    assert await ids(until=str(submitted)) == [done]
    assert await ids(since="2100-01-01T00:00:00Z") == []


async def test_a_gateway_that_starts_later_lists_what_was_there_before(house: House) -> None:
    gateway = await house.gateway()
    job_id = await submit(gateway)
    await house.stop(gateway)
    assert [job["job_id"] for job in (await page(await house.gateway()))["jobs"]] == [job_id]


@pytest.mark.parametrize(
    "query", [{"status": "lost"}, {"limit": "0"}, {"limit": "x"}, {"cursor": "nope"}, {"since": "yesterday"}]
)
async def test_a_filter_that_cannot_be_is_named(house: House, query: dict[str, str]) -> None:
    answer = await (await house.gateway()).get("/v1/jobs", params=query)
    assert answer.status == 422
    assert (await answer.json())["error"]["field"] == next(iter(query))


# -- images ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def make_image(house: House) -> tuple[TestClient, str]:
    """A gateway, and the path of an image."""
    gateway, worker = await house.gateway(), await house.worker()
    job_id = await submit(gateway)
    await worker.take()
    await worker.finish(job_id, [IMAGE])
    return gateway, f"/v1/jobs/{job_id}/images/0"


async def test_an_image_is_fetched_once_and_then_known_by_its_tag(make_image: tuple[TestClient, str]) -> None:
    gateway, path = make_image
    answer = await gateway.get(path)
    assert (answer.status, answer.content_type) == (200, "image/png")
    assert await answer.read() == IMAGE
    etag = answer.headers["ETag"]
    for header in (etag, f'"other", W/{etag}', "*"):
        again = await gateway.get(path, headers={"If-None-Match": header})
        assert (again.status, await again.read()) == (304, b"")
    assert (await gateway.get(path, headers={"If-None-Match": '"other"'})).status == 200
    head = await gateway.head(path)
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(IMAGE)))


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-9", IMAGE[:10]),
        ("bytes=1000-", IMAGE[1000:]),
        ("bytes=-24", IMAGE[-24:]),
        ("bytes=1020-9999", IMAGE[1020:]),
    ],
)
async def test_a_part_of_an_image_is_the_part_asked(
    make_image: tuple[TestClient, str], header: str, part: bytes
) -> None:
    gateway, path = make_image
    answer = await gateway.get(path, headers={"Range": header})
    assert (answer.status, await answer.read()) == (206, part)
    start = IMAGE.index(part)
    assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(part) - 1}/{len(IMAGE)}"


async def test_a_range_outside_is_refused_and_one_that_cannot_be_read_or_is_of_another_image_ignored(
    make_image: tuple[TestClient, str],
) -> None:
    gateway, path = make_image
    assert (await gateway.get(path, headers={"Range": "bytes=1024-"})).status == 416
    for headers in (
        {"Range": "lines=1-2"},
        {"Range": "bytes=9-1"},
        {"Range": "bytes=0-1", "If-Range": '"an older image"'},
    ):
        answer = await gateway.get(path, headers=headers)
        assert (answer.status, await answer.read()) == (200, IMAGE)


async def test_an_image_that_the_retention_has_removed_is_gone_and_its_job_is_not(house: House) -> None:
    limits = {"image_retention_s": 1.0}
    gateway, worker = await house.gateway(**limits), await house.worker(**limits)
    job_id = await submit(gateway)
    await worker.take()
    await worker.finish(job_id, [IMAGE])
    path = f"/v1/jobs/{job_id}/images/0"
    async with asyncio.timeout(20):
        while (answer := await gateway.get(path)).status == 200:
            await asyncio.sleep(0.2)
    assert answer.status == 410
    error = (await answer.json())["error"]
    assert error["code"] == "image_expired"
    assert "images are kept for 1 second" in error["message"]
    assert (await job_of(gateway, job_id))["status"] == "done"
    assert (await gateway.get(f"/v1/jobs/{job_id}/images/1")).status == 404


async def test_the_oldest_states_make_room_when_the_store_is_full(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.gateway.index.PRUNE_S", 0.1)
    limits = {"job_store_bytes": 20_000}
    gateway = await house.gateway(**limits)
    ids = []
    for _ in range(40):
        ids.append(await submit(gateway, prompt="a cat" * 100))
    assert (await gateway.get(f"/v1/jobs/{ids[0]}")).status == 404
    assert (await gateway.get(f"/v1/jobs/{ids[-1]}")).status == 200
    listed = [job["job_id"] for job in (await page(gateway, limit=200))["jobs"]]
    assert listed == ids[: -len(listed) - 1 : -1]
    assert len(listed) < 40
    assert gateway.app is not None
    async with asyncio.timeout(5):  # Nor does the gateway remember what the broker has forgotten.
        while len(gateway.app[INDEX]) != len(listed):
            await asyncio.sleep(0.05)


# -- cancellation --------------------------------------------------------------------------------------------------


async def cancel(gateway: TestClient, job_id: str) -> dict[str, Any]:
    answer = await gateway.delete(f"/v1/jobs/{job_id}")
    assert answer.status == 200
    return await answer.json()


async def test_cancelling_says_what_it_did_to_a_waiting_and_to_an_ended_job(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    ended, waiting, other = [await submit(gateway) for _ in range(3)]
    await worker.take()
    await worker.finish(ended)
    told = await cancel(gateway, waiting)
    assert (told["status"], told["outcome"]) == ("cancelled", "dequeued")
    told = await cancel(gateway, ended)
    assert (told["status"], told["outcome"]) == ("done", "already_ended")
    assert "done before" in told["message"]
    assert (await job_of(gateway, other))["status"] == "queued"


async def test_cancelling_a_running_job_asks_its_worker_and_waits_for_it(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    job_id = await submit(gateway)
    await worker.take()
    await worker.start(job_id)
    asked = await house.nc.subscribe(f"{worker.queue.names.cancel}.{job_id}")
    answer = asyncio.create_task(cancel(gateway, job_id))
    await asked.next_msg(timeout=30)
    assert (await job_of(gateway, job_id))["cancel_requested"]
    await worker.cancelled(job_id)
    told = await answer
    assert (told["status"], told["outcome"]) == ("cancelled", "interrupted")


async def test_a_cancellation_that_comes_too_late_says_so(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    job_id = await submit(gateway)
    await worker.take()
    await worker.start(job_id)
    asked = await house.nc.subscribe(f"{worker.queue.names.cancel}.{job_id}")
    answer = asyncio.create_task(cancel(gateway, job_id))
    await asked.next_msg(timeout=30)
    await worker.finish(job_id)
    told = await answer
    assert (told["status"], told["outcome"]) == ("done", "already_ended")


async def hang_up(gateway: TestClient, worker: HandWorker, **body: Any) -> str:
    """Send a request that waits, and close the connection when a worker has its job."""
    assert gateway.port is not None
    content = json.dumps({**BODY, **body}).encode()
    head = f"POST /v1/generate-image HTTP/1.1\r\nHost: 127.0.0.1:{gateway.port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return (await worker.take()).job_id


async def test_a_caller_who_hangs_up_cancels_the_job_only_if_asked(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    left = await hang_up(gateway, worker)
    dropped = await hang_up(gateway, worker, cancel_on_disconnect=True)
    await until(gateway, dropped, status="cancelled")
    assert (await job_of(gateway, left))["status"] == "queued"
    await cancel(gateway, left)


async def test_a_request_that_does_not_wait_cannot_be_hung_up_on(house: House) -> None:
    answer = await (await house.gateway()).post("/v1/jobs", json={**BODY, "cancel_on_disconnect": True})
    assert answer.status == 422
    assert (await answer.json())["error"]["field"] == "cancel_on_disconnect"


# -- Idempotency-Key -----------------------------------------------------------------------------------------------


async def test_the_same_key_is_the_same_job_over_gateways_and_after_its_end(house: House) -> None:
    gateway, other, worker = await house.gateway(), await house.gateway(), await house.worker()
    headers = {"Idempotency-Key": "order 66"}
    first = await gateway.post("/v1/jobs", json=BODY, headers=headers)
    again = await other.post("/v1/jobs", data=b'{"mode":"paint",\n"prompt":"a cat"}', headers={
        **headers, "Content-Type": "application/json"})  # fmt: skip
    job_id = (await first.json())["job_id"]
    assert (again.status, (await again.json())["job_id"]) == (202, job_id)
    assert again.headers["Location"] == first.headers["Location"]
    assert (first.headers.get("Idempotency-Replayed"), again.headers["Idempotency-Replayed"]) == (None, "true")
    await worker.take()
    await worker.finish(job_id, [IMAGE])
    late = await gateway.post("/v1/jobs", json=BODY, headers=headers)
    assert (await late.json())["status"] == "done"
    with pytest.raises(asyncio.TimeoutError):
        await (await worker.queue.subscribe()).fetch(1, timeout=0.2)


async def test_many_at_once_with_one_key_make_one_job(house: House) -> None:
    gateways = [await house.gateway(), await house.gateway()]
    headers = {"Idempotency-Key": str(uuid4())}
    answers = await asyncio.gather(
        *(gateways[number % 2].post("/v1/jobs", json=BODY, headers=headers) for number in range(10))
    )
    jobs = [await answer.json() for answer in answers]
    assert len({job["job_id"] for job in jobs}) == 1
    assert len({job["parameters"]["seed"] for job in jobs}) == 1


async def test_a_key_with_another_request_is_refused_and_one_of_a_refused_request_free(house: House) -> None:
    gateway = await house.gateway()
    headers = {"Idempotency-Key": "k"}
    assert (await gateway.post("/v1/jobs", json={**BODY, "strength": 7}, headers=headers)).status == 422
    assert (await gateway.post("/v1/jobs", json=BODY, headers=headers)).status == 202
    answer = await gateway.post("/v1/jobs", json={**BODY, "prompt": "a dog"}, headers=headers)
    assert answer.status == 422
    assert (await answer.json())["error"]["code"] == "idempotency_mismatch"
    assert (await gateway.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": "x" * 256})).status == 422


async def test_a_waiting_request_repeated_with_its_key_waits_for_the_same_job(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    headers = {"Idempotency-Key": "once"}
    waits = [asyncio.create_task(gateway.post("/v1/generate-image", json=BODY, headers=headers)) for _ in range(2)]
    job = await worker.take()
    await worker.start(job.job_id)
    await worker.finish(job.job_id, [IMAGE])
    answers = [await (await wait).json() for wait in waits]
    assert answers[0] == answers[1]
    assert answers[0]["job_id"] == job.job_id
    replay = await gateway.post("/v1/generate-image", json=BODY, headers=headers)
    assert await replay.json() == answers[0]


async def test_a_key_whose_gateway_died_before_it_queued_the_job_is_carried_on(house: House) -> None:
    from bridge.gateway.idempotency import Claim, IdempotencyKeys
    from bridge.gateway.requests import Body

    gateway, worker = await house.gateway(), await house.worker()
    keys = await IdempotencyKeys.open(house.nc.jetstream(), worker.queue.names.idempotency)
    claim = Claim(job_id=str(uuid4()), fingerprint=Body(BODY).fingerprint("/v1/jobs"))
    await keys.claim("torn", claim)
    answer = await gateway.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": "torn"})
    assert (await answer.json())["job_id"] == claim.job_id
    assert (await worker.take()).job_id == claim.job_id
