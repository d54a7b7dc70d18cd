"""Small images reach the gateway that waits for them without a question to the store, and are what the store has."""

from __future__ import annotations

import asyncio
import base64
import hashlib

import pytest
from aiohttp.test_utils import TestClient

from bridge.broker.image_post import MAX_WAITING, SMALL_BYTES
from bridge.broker.images import ImageStore
from bridge.contract import Job
from tests.bridge.house import BODY, HandWorker, House

SMALL, LARGE = b"small image", b"large image" * (SMALL_BYTES // 11 + 1)


@pytest.fixture
async def doors(house: House) -> tuple[TestClient, HandWorker]:
    return await house.gateway(), await house.worker()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that a store was asked for."""
    names: list[str] = []
    real = ImageStore.get

    async def get(store: ImageStore, image):
        names.append(image.name)
        return await real(store, image)

    monkeypatch.setattr(ImageStore, "get", get)
    return names


async def drawn(doors: tuple[TestClient, HandWorker], path: str, images: list[bytes], lie: bytes | None = None):
    """What a request is answered with; `lie` is sent in place of the first image."""
    gateway, worker = doors
    asked = asyncio.create_task(gateway.post(path, json=BODY))
    job: Job = await worker.take()
    delivery = worker.delivery(job.job_id)
    for index, data in enumerate(images):
        await worker.queue.store_image(job.job_id, index, "png", data, delivery=delivery)
    if lie is not None:
        assert delivery.headers
        await worker.queue.nc.publish(f"{delivery.headers['Imagegen-Images']}.{job.job_id}.0", lie)
    await worker.finish(job.job_id, images)
    return await (await asked).json()


async def test_a_small_image_is_sent_along_and_a_large_one_is_read(
    doors: tuple[TestClient, HandWorker], read: list[str]
) -> None:
    answer = await drawn(doors, "/v1/generate-image", [SMALL, LARGE])
    assert [base64.b64decode(text) for text in answer["images"]] == [SMALL, LARGE]
    assert [name.partition("/")[2] for name in read] == ["1.png"]


async def test_an_image_that_is_not_what_the_store_has_is_read_from_there(
    doors: tuple[TestClient, HandWorker], read: list[str]
) -> None:
    answer = await drawn(doors, "/v1/generate-image", [SMALL], lie=b"another thing")
    assert base64.b64decode(answer["image_bytes_b64"]) == SMALL
    assert hashlib.sha256(base64.b64decode(answer["images"][0])).digest() == hashlib.sha256(SMALL).digest()
    assert [name.partition("/")[2] for name in read] == ["0.png"]


async def test_nobody_is_sent_the_image_of_a_job_that_is_not_waited_for(doors: tuple[TestClient, HandWorker]) -> None:
    gateway, worker = doors
    assert (await gateway.post("/v1/jobs", json=BODY)).status == 202
    job = await worker.take()
    assert "Imagegen-Images" not in (worker.delivery(job.job_id).headers or {})


async def test_images_that_nobody_fetches_are_not_hoarded(house: House) -> None:
    worker = await house.worker()
    await worker.queue.start_listening()
    post = worker.queue.post
    for number in range(MAX_WAITING + 50):
        await post.send(post.headers, f"job{number}", 0, SMALL)
    await house.nc.flush()
    async with asyncio.timeout(10):
        while f"job{MAX_WAITING + 49}/0" not in post.waiting:  # noqa: ASYNC110 - told by nobody
            await asyncio.sleep(0.01)
    assert len(post.waiting) == MAX_WAITING
    assert "job0/0" not in post.waiting
