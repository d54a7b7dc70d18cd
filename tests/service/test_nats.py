"""The NATS door: request/reply with the models of REST, and an event after every job."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
import requests
from nats.aio.client import Client

from bridge.broker.connection import subscribed
from bridge.contract import ImageGenResponse, ModelInfoResponse
from tests.service.conftest import DEFAULT_MODEL, Service

REQUEST = "ai.vision.imagegen.request"
RESULT = "ai.vision.imagegen.result"
MODEL_INFO = "ai.vision.imagegen.model_info"
SMALL: dict[str, Any] = {"width": 128, "height": 96, "num_inference_steps": 2}


@pytest.fixture
async def nc(service: Service) -> AsyncIterator[Client]:
    client = await nats.connect(service.nats_url)
    yield client
    await client.close()


async def ask(nc: Client, **body: Any) -> dict[str, Any]:
    return json.loads((await nc.request(REQUEST, json.dumps(body).encode(), timeout=120)).data)


async def test_a_request_is_replied_with_the_image(nc: Client) -> None:
    answer = ImageGenResponse.model_validate(await ask(nc, prompt="a cat", seed=7, **SMALL))
    assert (answer.seed, answer.width, answer.height, answer.model) == (7, 128, 96, DEFAULT_MODEL)
    assert answer.image_bytes_b64
    assert base64.b64decode(answer.image_bytes_b64).startswith(b"\x89PNG")
    assert answer.image_object is None


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"not json", "not_json"),
        (b"[]", "invalid_request"),
        (b'{"prompt": "a", "width": 100}', "invalid_request"),
        (b'{"prompt": "a", "model": "nope"}', "unknown_model"),
    ],
)
async def test_an_error_is_a_reply_too(nc: Client, payload: bytes, code: str) -> None:
    reply = json.loads((await nc.request(REQUEST, payload, timeout=30)).data)
    assert reply["error"]["code"] == code


async def test_a_reply_that_does_not_fit_says_where_the_images_are(nc: Client) -> None:
    # Random weights draw noise, which no encoder makes small: over 1 MiB in base64, the server's default limit.
    answer = ImageGenResponse.model_validate(
        await ask(nc, prompt="a cat", width=512, height=512, num_inference_steps=1, num_images=2, seed=3)
    )
    assert (answer.image_bytes_b64, answer.images) == (None, [])
    assert answer.image_object == answer.image_objects[0]
    assert len(answer.image_objects) == 2
    for place in answer.image_objects:
        store = await nc.jetstream().object_store(place.bucket)
        data = (await store.get(place.name)).data
        assert data
        assert len(data) == place.size
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
        assert place.digest == f"SHA-256={digest}"


async def test_every_job_is_told_whichever_door_it_came_by(nc: Client, service: Service) -> None:
    results = await nc.subscribe(RESULT)
    await subscribed(nc)
    over_nats = await ask(nc, prompt="over nats", seed=1, **SMALL)
    body = {"prompt": "over rest", "seed": 2, **SMALL}
    over_rest = requests.post(f"{service.url}/v1/generate-image", json=body, timeout=60).json()
    own = [over_nats["job_id"], over_rest["job_id"]]
    told: list[dict[str, Any]] = []
    while len(told) < len(own):  # Jobs that earlier tests left behind end meanwhile.
        event = json.loads((await results.next_msg(timeout=30)).data)
        if event["job_id"] in own:
            told.append(event)
    assert [event["job_id"] for event in told] == own
    assert [event["parameters"]["prompt"] for event in told] == ["over nats", "over rest"]
    assert all(event["status"] == "done" and len(event["image_objects"]) == 1 for event in told)


async def test_model_info_is_the_same_as_over_rest(nc: Client, service: Service) -> None:
    over_nats = ModelInfoResponse.model_validate_json((await nc.request(MODEL_INFO, b"", timeout=30)).data)
    over_rest = ModelInfoResponse.model_validate(requests.get(f"{service.url}/v1/model-info", timeout=30).json())
    assert over_nats == over_rest
