"""A disk below its bound: every API refuses new jobs at once, with that cause, and everything else goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge.broker.connection import subscribed
from bridge.names import Names
from tests.bridge.house import BODY, House

FULL: dict[str, Any] = {"min_free_disk_bytes": 2**60}
JOBS = [
    ("/v1/jobs", BODY),
    ("/v1/generate-image", BODY),
    ("/v1/modes/paint", {"prompt": "a cat"}),
    ("/v1/load-model?model_name=flux-schnell", None),
]


@pytest.fixture
def full(tmp_path: Path) -> dict[str, Any]:
    return {**FULL, "disk_folders": (str(tmp_path),)}


@pytest.mark.parametrize(("path", "body"), JOBS, ids=[path.partition("?")[0] for path, _ in JOBS])
async def test_rest_refuses_a_new_job(house: House, full: dict[str, Any], path: str, body: dict[str, Any]) -> None:
    gateway = await house.gateway(**full)
    answer = await gateway.post(path, json=body)
    error = (await answer.json())["error"]
    assert (answer.status, error["code"]) == (503, "storage_full")
    assert answer.headers["Retry-After"]
    assert full["disk_folders"][0] in error["message"]
    assert "min_free_disk_bytes" in error["message"]


async def test_nats_refuses_a_new_job(house: House, full: dict[str, Any]) -> None:
    await house.gateway(**full)
    await subscribed(house.nc)
    for subject in (Names(house.prefix).request, Names(house.prefix).submit):
        reply = await house.nc.request(subject, json.dumps(BODY).encode(), timeout=5)
        assert json.loads(reply.data)["error"]["code"] == "storage_full"


async def test_readiness_says_it_and_reading_goes_on(house: House, full: dict[str, Any]) -> None:
    roomy = await house.gateway()
    job_id = (await (await roomy.post("/v1/jobs", json=BODY)).json())["job_id"]
    gateway = await house.gateway(**full)
    answer = await gateway.get("/readyz")
    assert (answer.status, (await answer.json())["error"]["code"]) == (503, "storage_full")
    assert (await gateway.get("/healthz")).status == 200
    assert (await gateway.get(f"/v1/jobs/{job_id}")).status == 200
    assert (await gateway.get("/v1/jobs")).status == 200
    assert (await gateway.delete(f"/v1/jobs/{job_id}")).status < 400


async def test_a_refused_key_is_free_again_and_a_used_one_still_answers(house: House, full: dict[str, Any]) -> None:
    gateway, roomy = await house.gateway(**full), await house.gateway()
    key = {"Idempotency-Key": "one"}
    assert (await gateway.post("/v1/jobs", json=BODY, headers=key)).status == 503
    accepted = await roomy.post("/v1/jobs", json=BODY, headers=key)
    assert accepted.status == 202
    again = await gateway.post("/v1/jobs", json=BODY, headers=key)
    assert (again.status, (await again.json())["job_id"]) == (202, (await accepted.json())["job_id"])


async def test_zero_is_no_bound(house: House, full: dict[str, Any]) -> None:
    gateway = await house.gateway(**{**full, "min_free_disk_bytes": 0})
    assert (await gateway.get("/readyz")).status == 200
