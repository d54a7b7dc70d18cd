"""Results in S3, on a real S3 server (moto's): copies, presigned URLs, and a server that is away."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
import uuid
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from aiohttp.test_utils import TestClient
from moto.server import ThreadedMotoServer
from nats.aio.client import Client

from bridge.client import AsyncImageGenClient
from bridge.gateway.s3 import Bucket, S3Error
from bridge.gateway.s3.bucket import shared_credentials
from bridge.names import Names
from bridge.service.children.comfyui import free_port
from bridge.settings import Settings, SettingsError
from tests.bridge.gateway.test_webhooks import ALLOWED, Receiver
from tests.bridge.gateway.test_webhooks import receiver as receiver
from tests.bridge.house import BODY, HandWorker, House, submit

IMAGES = [b"first image", b"second image"]
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


class S3Server:
    """An S3 server that can go away, and come back at the same address."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._server: ThreadedMotoServer | None = None

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def client(self) -> Any:
        return boto3.client(
            "s3", endpoint_url=self.url, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
        )

    def keys(self, bucket: str) -> dict[str, bytes]:
        found = self.client().list_objects_v2(Bucket=bucket).get("Contents", [])
        return {each["Key"]: self.client().get_object(Bucket=bucket, Key=each["Key"])["Body"].read() for each in found}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings of a bucket of its own."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{uuid.uuid4().hex}"
    server.client().create_bucket(Bucket=bucket)
    return {"s3_bucket": bucket, "s3_endpoint": server.url, "s3_prefix": "team/images/", "s3_url_lifetime_s": 600.0}


async def until_copied(gateway: TestClient, job_id: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            job = await (await gateway.get(f"/v1/jobs/{job_id}")).json()
            if job["images"] and all(image["url"] for image in job["images"]):
                return job
            await asyncio.sleep(0.05)


def fetch(url: str) -> tuple[bytes, str]:
    answer = requests.get(url, timeout=10)
    assert answer.status_code == 200, answer.text
    return answer.content, answer.headers["Content-Type"]


async def done(worker: HandWorker) -> str:
    job = await worker.take()
    await worker.start(job.job_id)
    await worker.finish(job.job_id, IMAGES)
    return job.job_id


async def test_who_waits_gets_urls_of_copies_that_are_there(house: House, s3: dict[str, Any], server: S3Server) -> None:
    gateway, worker = await house.gateway(**s3), await house.worker()
    asked = asyncio.create_task(gateway.post("/v1/generate-image", json=BODY))
    job_id = await done(worker)
    answer = await (await asked).json()
    assert answer["warnings"] == []
    assert [base64.b64decode(image) for image in answer["images"]] == IMAGES
    for file, data in zip(answer["files"], IMAGES, strict=True):
        assert await asyncio.to_thread(fetch, file["url"]) == (data, "image/png")
        assert 590 < file["url_expires_at"] - time.time() < 610
        assert "X-Amz-Expires=600" in file["url"]
    keys = await asyncio.to_thread(server.keys, s3["s3_bucket"])
    assert keys == {f"team/images/{job_id}/{index}.png": data for index, data in enumerate(IMAGES)}


async def test_a_job_nobody_waits_for_is_copied_too_and_every_api_says_where(
    house: House, s3: dict[str, Any], nc: Client
) -> None:
    gateway, worker = await house.gateway(**s3), await house.worker()
    job_id = await submit(gateway)
    await done(worker)
    job = await until_copied(gateway, job_id)
    assert job["images"][0]["s3_uri"] == f"s3://{s3['s3_bucket']}/team/images/{job_id}/0.png"
    assert (job["status"], job["warnings"]) == ("done", [])
    listed = (await (await gateway.get("/v1/jobs")).json())["jobs"][0]
    over_nats = json.loads((await nc.request(f"{Names(house.prefix).state}.{job_id}", b"", timeout=30)).data)
    async with AsyncImageGenClient(str(gateway.make_url("/"))) as client:
        waited = await client.wait(job_id)
    for images in (listed["images"], over_nats["images"], [image.model_dump() for image in waited.images]):
        data, _ = await asyncio.to_thread(fetch, images[1]["url"])
        assert data == IMAGES[1]


async def test_a_webhook_has_the_urls(house: House, s3: dict[str, Any], receiver: Receiver) -> None:
    gateway, worker = await house.gateway(**s3, **ALLOWED), await house.worker()
    await submit(gateway, callback_url=receiver.url)
    await done(worker)
    [call] = await receiver.calls(1)
    assert (await asyncio.to_thread(fetch, call["image_objects"][0]["url"]))[0] == IMAGES[0]


@pytest.fixture
async def away(server: S3Server, s3: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """An S3 server that is away until the test starts it."""
    server.stop()
    yield s3
    server.stop()
    server.start()


async def test_while_s3_is_away_no_job_is_lost_and_the_copy_is_made_later(
    house: House, away: dict[str, Any], server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.gateway.s3.bucket.RETRY_S", 0.5)
    monkeypatch.setattr("bridge.gateway.s3.exports.FIRST_RETRY_S", 0.2)
    monkeypatch.setattr("bridge.gateway.s3.exports.ACK_WAIT_S", 2.0)
    monkeypatch.setattr("bridge.gateway.s3.exports.LAST_RETRY_S", 0.5)
    gateway, worker = await house.gateway(**away), await house.worker()
    asked = asyncio.create_task(gateway.post("/v1/generate-image", json=BODY))
    job_id = await done(worker)
    answer = await (await asked).json()
    assert [base64.b64decode(image) for image in answer["images"]] == IMAGES
    assert [file["url"] for file in answer["files"]] == [None, None]
    assert "not in the S3 bucket yet" in answer["warnings"][0]
    assert (await (await gateway.get(f"/v1/jobs/{job_id}/images/0")).read()) == IMAGES[0]
    await house.stop(gateway)  # Another gateway goes on with it.

    server.start()
    await asyncio.to_thread(server.client().create_bucket, Bucket=away["s3_bucket"])
    gateway = await house.gateway(**away)
    job = await until_copied(gateway, job_id)
    assert job["warnings"] == []
    assert (await asyncio.to_thread(fetch, job["images"][1]["url"]))[0] == IMAGES[1]


async def test_the_state_of_a_job_is_as_it_was_but_for_its_copies(house: House, s3: dict[str, Any]) -> None:
    gateway, worker = await house.gateway(**s3), await house.worker()
    job_id = await submit(gateway)
    job = await worker.take()
    await worker.start(job.job_id)
    before = await worker.finish(job.job_id, IMAGES)
    await until_copied(gateway, job_id)
    after = await worker.queue.state(job_id)
    assert after.model_dump(exclude={"images"}) == before.model_dump(exclude={"images"})
    assert all(image.url is None for image in after.images)  # URLs expire, so none is stored.


async def test_an_image_that_the_service_no_longer_keeps_is_read_from_its_copy(
    house: House, s3: dict[str, Any], server: S3Server, nc: Client
) -> None:
    gateway, worker = await house.gateway(**s3), await house.worker()
    job_id = await submit(gateway)
    await done(worker)
    await until_copied(gateway, job_id)
    await nc.jetstream().purge_stream(f"OBJ_{Names(house.prefix).images}")

    for index, data in enumerate(IMAGES):
        answer = await gateway.get(f"/v1/jobs/{job_id}/images/{index}", headers={"Range": "bytes=0-4"})
        assert (answer.status, await answer.read()) == (206, data[:5])
    packed = await (await gateway.get(f"/v1/jobs/{job_id}/images.zip")).read()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert [archive.read(name) for name in archive.namelist()] == IMAGES
    again = await gateway.post("/v1/modes/image-to-image", json={"prompt": "x", "image": f"job:{job_id}/0"})
    assert "first image" not in await again.text()
    assert "no longer kept" not in await again.text()  # It was read, and is no image of any format.

    keys = await asyncio.to_thread(server.keys, s3["s3_bucket"])
    first, second = sorted(keys)
    await asyncio.to_thread(server.client().delete_object, Bucket=s3["s3_bucket"], Key=first)
    await asyncio.to_thread(server.client().put_object, Bucket=s3["s3_bucket"], Key=second, Body=b"replaced")
    for index in (0, 1):
        answer = await gateway.get(f"/v1/jobs/{job_id}/images/{index}")
        assert (answer.status, (await answer.json())["error"]["code"]) == (410, "image_expired")


async def test_while_s3_is_away_an_image_that_it_alone_has_is_unavailable_and_not_gone(
    house: House, s3: dict[str, Any], server: S3Server, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.gateway.s3.bucket.RETRY_S", 0.5)
    gateway, worker = await house.gateway(**s3), await house.worker()
    job_id = await submit(gateway)
    await done(worker)
    await until_copied(gateway, job_id)
    await nc.jetstream().purge_stream(f"OBJ_{Names(house.prefix).images}")
    server.stop()
    try:
        answer = await gateway.get(f"/v1/jobs/{job_id}/images/0")
        assert answer.status == 503
        assert "kept in S3 alone" in (await answer.json())["error"]["message"]
    finally:
        server.start()


async def test_without_a_bucket_nothing_is_said_of_s3(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    job_id = await submit(gateway)
    await done(worker)
    job = await (await gateway.get(f"/v1/jobs/{job_id}")).json()
    assert (job["images"][0]["url"], job["warnings"]) == (None, [])


async def test_what_the_storage_refuses_is_told(server: S3Server) -> None:
    bucket = Bucket("nobody-made-this", endpoint=server.url, env=KEYS)
    with pytest.raises(S3Error, match="nobody-made-this did not take an image"):
        await bucket.put(bucket.uri("a/0.png"), b"x", "image/png")
    assert await bucket.links(["s3://other/a/0.png"]) == [None]


async def test_without_credentials_the_remedy_is_named(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    bucket = Bucket("any", endpoint=server.url, env={"AWS_SHARED_CREDENTIALS_FILE": "/none"})
    with pytest.raises(S3Error, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"):
        await bucket.links([bucket.uri("x")])


def test_credentials_come_from_the_shared_file_and_its_profiles(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        "[default]\naws_access_key_id = A\naws_secret_access_key = B%C\n[two]\naws_access_key_id=D\n"
        "aws_secret_access_key=E\naws_session_token=F\n"
    )
    env = {"AWS_SHARED_CREDENTIALS_FILE": str(file)}
    assert shared_credentials(env) == {"access_key_id": "A", "secret_access_key": "B%C"}
    assert shared_credentials({**env, "AWS_PROFILE": "two"})["session_token"] == "F"
    assert shared_credentials({**env, **KEYS}) == {}
    assert shared_credentials({"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}) == {}
    with pytest.raises(SettingsError, match="no profile 'three'"):
        shared_credentials({**env, "AWS_PROFILE": "three"})
    file.write_text("aws_access_key_id = A\n")
    with pytest.raises(SettingsError, match="cannot be read"):
        shared_credentials(env)


async def test_the_file_signs_what_the_server_takes(s3: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = from-file\naws_secret_access_key = B\n")
    env = {"AWS_SHARED_CREDENTIALS_FILE": str(file)}
    bucket = Bucket(s3["s3_bucket"], endpoint=s3["s3_endpoint"], env=env)
    await bucket.put(bucket.uri("x.png"), b"x", "image/png")
    [link] = await bucket.links([bucket.uri("x.png")])
    assert link
    assert "Credential=from-file" in link.url
    assert await asyncio.to_thread(fetch, link.url) == (b"x", "image/png")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("s3_url_lifetime_s", 7 * 86400 + 1, "is above 604800"),
        ("s3_url_lifetime_s", 0, "is not above 0"),
        ("s3_endpoint", "minio:9000", "write http://minio:9000"),
    ],
)
def test_settings_that_s3_would_refuse_are_named(name: str, value: object, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        Settings(**{name: value})
