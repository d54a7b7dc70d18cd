"""The NATS API of a gateway: jobs are queued, looked at and cancelled by request and reply, as over REST."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest

from bridge.contract import JobEvent, JobState, JobStatus
from tests.bridge.house import BODY, House


async def ask(house: House, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = json.dumps(body).encode() if body is not None else b""
    return json.loads((await house.nc.request(f"{house.prefix}.{subject}", data, timeout=30)).data)


async def test_who_comes_late_asks_for_the_present_state_and_follows_the_events(house: House) -> None:
    await house.gateway()
    worker = await house.worker()
    job_id = (await ask(house, "submit", BODY))["job_id"]
    assert (await ask(house, f"state.{job_id}"))["status"] == "queued"
    second = (await ask(house, "submit", BODY))["job_id"]
    assert (await ask(house, f"state.{second}"))["position"] == 1
    await worker.take()
    await worker.start(job_id)
    await worker.step(job_id, 3, 8)
    # As a reader that comes now does it: subscribe first, then ask, so that nothing falls in between.
    events = await house.nc.subscribe(f"{house.prefix}.events.{job_id}")
    state = JobState.model_validate(await ask(house, f"state.{job_id}"))
    assert state.status is JobStatus.RUNNING
    assert state.progress
    assert (state.progress.value, state.progress.maximum) == (3, 8)
    await worker.finish(job_id, [b"image"])
    event = JobEvent.model_validate_json((await events.next_msg(timeout=30)).data)
    assert event.type == "done"
    assert event.state
    assert await ask(house, f"state.{job_id}") == json.loads(event.state.model_dump_json())


async def test_a_job_is_cancelled_over_nats(house: House) -> None:
    await house.gateway()
    kept, unwanted = [(await ask(house, "submit", BODY))["job_id"] for _ in range(2)]
    answer = await ask(house, "cancel", {"job_id": unwanted})
    assert (answer["job_id"], answer["status"], answer["outcome"]) == (unwanted, "cancelled", "dequeued")
    assert (await ask(house, f"state.{unwanted}"))["status"] == "cancelled"
    assert (await ask(house, f"state.{kept}"))["status"] == "queued"


@pytest.mark.parametrize(
    ("subject", "body", "code"),
    [
        ("submit", {"mode": "paint"}, "invalid_request"),
        ("submit", {**BODY, "cancel_on_disconnect": True}, "invalid_request"),
        ("state.6f158824-1320-44e6-a689-3661426a9dde", None, "unknown_job"),
        ("state.x", None, "unknown_job"),
        ("cancel", {"job_id": str(uuid4())}, "unknown_job"),
        ("cancel", {"job_id": "x"}, "invalid_request"),
        ("cancel", {}, "invalid_request"),
    ],
)
async def test_an_error_is_the_reply(house: House, subject: str, body: dict[str, Any] | None, code: str) -> None:
    await house.gateway()
    assert (await ask(house, subject, body))["error"]["code"] == code


async def test_the_same_key_is_the_same_job(house: House) -> None:
    await house.gateway()
    subject, headers = f"{house.prefix}.submit", {"Idempotency-Key": "order 66"}
    replies = [
        await house.nc.request(subject, json.dumps(body).encode(), timeout=10, headers=headers)
        for body in (BODY, dict(reversed(BODY.items())), {**BODY, "prompt": "a dog"})
    ]
    first, again, other = (json.loads(reply.data) for reply in replies)
    assert again["job_id"] == first["job_id"]
    assert [dict(reply.headers or {}) for reply in replies] == [{}, {"Idempotency-Replayed": "true"}, {}]
    assert other["error"]["code"] == "idempotency_mismatch"


async def test_a_request_that_waits_is_repeated_with_its_key(house: House) -> None:
    await house.gateway()
    worker = await house.worker()
    subject, headers = f"{house.prefix}.request", {"Idempotency-Key": "once"}
    data = json.dumps(BODY).encode()
    waits = [asyncio.create_task(house.nc.request(subject, data, timeout=30, headers=headers)) for _ in range(2)]
    job = await worker.take()
    await worker.finish(job.job_id, [b"image"])
    first, second = [json.loads((await wait).data) for wait in waits]
    assert first == second
    assert first["job_id"] == job.job_id
