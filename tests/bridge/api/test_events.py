"""The story of a job: told from where it stands to its end, over a WebSocket, as server-sent events and over NATS."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient

from bridge.broker.mailbox import MAX_PHASES, Mailbox
from bridge.contract import JobEvent, JobStatus
from bridge.gateway.events import tell
from bridge.gateway.index import JobIndex
from tests.bridge.house import BODY, House, submit

JOB = "0d4c1d3a-3a3d-4b9f-8a51-0b2f3c4d5e6f"


def progress(value: float, phase: str = "sample") -> JobEvent:
    return JobEvent(type="progress", job_id=JOB, phase=phase, value=value, maximum=100)


async def server_sent(answer: ClientResponse) -> AsyncIterator[tuple[str, str, dict[str, Any]]]:
    """Id, event name and data of each server-sent event."""
    fields: dict[str, str] = {}
    async for line in answer.content:
        text = line.decode().rstrip("\n")
        if text and not text.startswith(":"):
            name, _, fields[name] = text.partition(": ")
        elif "data" in fields:
            yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}


async def over_websocket(gateway: TestClient, job_id: str, query: str = "") -> AsyncIterator[dict[str, Any]]:
    async with gateway.ws_connect(f"/v1/jobs/{job_id}/events{query}") as socket:
        async for message in socket:
            yield message.json()


# -- one slow reader -----------------------------------------------------------------------------------------------


async def test_a_reader_that_falls_behind_gets_the_newest_of_everything_and_the_end() -> None:
    mailbox = Mailbox()
    for step in range(10_000):
        mailbox.put(progress(step))
        mailbox.put(JobEvent(type="preview", job_id=JOB, image_b64=str(step)))
    assert len(mailbox) == 2
    assert [await mailbox.get(), await mailbox.get()] == [
        progress(9999),
        JobEvent(type="preview", job_id=JOB, image_b64="9999"),
    ]


async def test_what_one_reader_holds_is_bounded_whatever_a_graph_does() -> None:
    mailbox = Mailbox()
    for phase in range(10 * MAX_PHASES):
        mailbox.put(progress(1, phase=f"node {phase}"))
    assert len(mailbox) == MAX_PHASES


async def test_a_reader_without_previews_never_holds_one() -> None:
    mailbox = Mailbox(previews=False)
    mailbox.put(JobEvent(type="preview", job_id=JOB, image_b64="x"))
    assert len(mailbox) == 0


async def test_a_reader_that_takes_nothing_holds_up_nobody(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    job_id = await submit(gateway)
    await worker.take()
    index = JobIndex(worker.queue)
    await worker.queue.start_listening()
    stuck = tell(worker.queue, index, job_id, previews=True)
    assert (await anext(stuck)).type == "state"  # And then it does not come back.
    reader = over_websocket(gateway, job_id)
    assert (await anext(reader))["type"] == "state"
    await worker.start(job_id)
    assert (await anext(reader))["type"] == "started"
    for step in range(1, 501):
        await worker.step(job_id, step, 500)
    await worker.finish(job_id)
    told = [event async for event in reader]
    assert [event["value"] for event in told[:-1]] == sorted({event["value"] for event in told[:-1]})
    assert told[-2]["value"] == 500
    assert told[-1]["type"] == "done"
    late = [event async for event in stuck]
    assert late[-1].type == "done"
    assert late[-2].value == 500


# -- the three doors -----------------------------------------------------------------------------------------------


async def test_server_sent_events_tell_the_whole_story_with_ids_and_end_with_it(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    job_id = await submit(gateway)
    answer = await gateway.get(f"/v1/jobs/{job_id}/events")
    assert (answer.status, answer.content_type) == (200, "text/event-stream")
    events = server_sent(answer)
    identity, name, data = await anext(events)
    assert (identity, name, data["state"]["status"]) == ("1", "state", "queued")
    await worker.take()
    await worker.start(job_id)
    assert (await anext(events))[:2] == ("2", "started")
    await worker.step(job_id, 1, 4)
    identity, name, data = await anext(events)
    assert (identity, name, data["phase"], data["value"], data["maximum"], data["seconds_left"]) == (
        *("3", "progress", "sample"), 1, 4, 3,
    )  # fmt: skip
    await worker.finish(job_id)
    [(identity, name, data)] = [event async for event in events]
    assert (identity, name, data["state"]["status"]) == ("end", "done", "done")


async def test_a_browser_that_comes_back_after_the_end_is_told_to_stay_away(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    job_id = await submit(gateway)
    await worker.take()
    await worker.finish(job_id)
    path = f"/v1/jobs/{job_id}/events"
    again = [event async for event in server_sent(await gateway.get(path, headers={"Last-Event-ID": "7"}))]
    assert [name for _, name, _ in again] == ["done"]
    assert (await gateway.get(path, headers={"Last-Event-ID": "end"})).status == 204
    assert (await gateway.get("/v1/jobs/" + JOB + "/events")).status == 404


async def test_who_comes_late_is_told_the_last_step_at_once_at_every_gateway(house: House) -> None:
    gateways, worker = [await house.gateway(), await house.gateway()], await house.worker()
    job_id = await submit(gateways[0])
    await worker.take()
    await worker.start(job_id)
    await worker.step(job_id, 5, 8)
    await worker.queue.nc.flush()
    for gateway in gateways:
        async with asyncio.timeout(5):
            while not (await (await gateway.get(f"/v1/jobs/{job_id}")).json())["progress"]:
                await asyncio.sleep(0.02)
        reader = over_websocket(gateway, job_id)
        first, second = await anext(reader), await anext(reader)
        assert (first["type"], first["state"]["status"]) == ("state", "running")
        assert (second["type"], second["value"]) == ("progress", 5)
        await reader.aclose()  # pyright: ignore[reportAttributeAccessIssue] - a generator


async def test_a_waiting_job_tells_when_it_moves_up(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    ids = [await submit(gateway) for _ in range(3)]
    reader = over_websocket(gateway, ids[2])
    assert (await anext(reader))["position"] == 2
    await worker.take()
    await worker.start(ids[0])
    moved = await anext(reader)
    assert (moved["type"], moved["position"]) == ("queued", 1)
    await worker.take()
    await worker.finish(ids[0], seconds=30.0)
    await worker.start(ids[1])
    moved = await anext(reader)
    assert moved["position"] == 0
    assert 25 < moved["wait_seconds"] <= 30
    await reader.aclose()  # pyright: ignore[reportAttributeAccessIssue]


async def test_an_end_whose_event_was_lost_is_told_all_the_same(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    job_id = await submit(gateway)
    reader = over_websocket(gateway, job_id)
    await anext(reader)
    await worker.take()
    await worker.start(job_id)
    await worker.move(job_id, JobStatus.DONE, started_at=1.0, finished_at=2.0)
    assert [event["type"] async for event in reader] == ["started", "done"]


async def test_previews_are_asked_of_the_worker_only_while_somebody_looks(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    job_id = await submit(gateway)
    await worker.take()
    await worker.start(job_id)
    asked = await house.nc.subscribe(f"{worker.queue.names.watch}.{job_id}")
    blind, seeing = over_websocket(gateway, job_id), over_websocket(gateway, job_id, "?previews=true")
    await anext(blind)
    with pytest.raises(asyncio.TimeoutError):
        await asked.next_msg(timeout=0.3)
    await anext(seeing)
    await asked.next_msg(timeout=30)
    await worker.queue.publish(JobEvent(type="preview", job_id=job_id, image_b64="AAAA", mime="image/jpeg"))
    await worker.finish(job_id)
    assert "preview" not in [event["type"] async for event in blind]
    assert [event["type"] async for event in seeing][-2:] == ["preview", "done"]
    refused = await gateway.get(f"/v1/jobs/{job_id}/events?previews=perhaps")
    assert refused.status == 422


async def test_the_same_events_are_on_nats(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    job_id = await submit(gateway)
    heard = await house.nc.subscribe(f"{worker.queue.names.events}.{job_id}")
    await worker.take()
    await worker.start(job_id)
    await worker.step(job_id, 1, 2)
    await worker.finish(job_id)
    told = [JobEvent.model_validate_json((await heard.next_msg(timeout=30)).data) for _ in range(3)]
    assert [event.type for event in told] == ["started", "progress", "done"]
    assert told[2].final


async def test_whoever_waits_hears_of_the_end_from_the_broker_before_the_worker_tells_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.broker.jobs.STATE_POLL_S", 3600.0)
    gateway, worker = await house.gateway(), await house.worker()
    asked = asyncio.create_task(gateway.post("/v1/generate-image", json=BODY))
    job = await worker.take()
    images = [await worker.queue.store_image(job.job_id, 0, "png", b"image")]
    await worker.move(job.job_id, JobStatus.DONE, images=images, image_format="png", finished_at=time.time())
    async with asyncio.timeout(20):
        assert (await asked).status == 200
