"""Whoever leaves a callback_url is called back: signed, until it is heard, and never to where it must not go."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bridge.broker import consumer
from bridge.broker.jobs import JobQueue
from bridge.contract import InvalidRequest, Job, JobKind
from bridge.gateway.outside.callback_address import CallbackPolicy, is_public
from bridge.gateway.outside.webhooks import Backoff, Webhooks, sign, verify
from bridge.stopping import stop
from tests.bridge.house import BODY, HandWorker, House, submit

SECRET = "between us"
ALLOWED = {"webhook_secret": SECRET, "webhook_allow_private": True}


class Receiver:
    """A receiver that answers as it was told, then with 200."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.url = ""
        self._news = asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        self.heard.append((dict(request.headers), await request.read()))
        self._news.set()
        status = self.answers.pop(0) if self.answers else 200
        headers = {"Location": f"{self.url}/elsewhere"} if status == 302 else {}
        return web.Response(status=status, headers=headers)

    async def calls(self, count: int) -> list[dict[str, Any]]:
        """Wait for so many calls; their bodies."""
        async with asyncio.timeout(20):
            while len(self.heard) < count:
                self._news.clear()
                await self._news.wait()
        return [json.loads(body) for _, body in self.heard]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    server = TestServer(app)
    await server.start_server()
    receiver.url = f"http://127.0.0.1:{server.port}"
    yield receiver
    await server.close()


async def test_the_end_of_a_job_is_called_back_signed(house: House, receiver: Receiver) -> None:
    gateway, worker = await house.gateway(**ALLOWED), await house.worker(**ALLOWED)
    job_id = await submit(gateway, callback_url=f"{receiver.url}/hook?mine=1")
    await worker.take()
    await worker.finish(job_id, [b"image"])
    [body] = await receiver.calls(1)
    assert (body["job_id"], body["status"], body["parameters"]["prompt"]) == (job_id, "done", "a cat")
    assert body["image_urls"] == [f"/v1/jobs/{job_id}/images/0"]
    assert await (await gateway.get(body["image_urls"][0])).read() == b"image"
    headers, raw = receiver.heard[0]
    assert headers["Imagegen-Job"] == job_id
    assert verify(SECRET, raw, headers["Imagegen-Signature"])
    assert not verify("something else", raw, headers["Imagegen-Signature"])
    assert not verify(SECRET, raw + b" ", headers["Imagegen-Signature"])
    assert not verify(SECRET, raw, headers["Imagegen-Signature"], now=time.time() + 301)


async def test_a_call_is_repeated_until_it_is_taken_and_follows_no_redirect(house: House, receiver: Receiver) -> None:
    receiver.answers = [500, 302]
    gateway, worker = await house.gateway(**ALLOWED), await house.worker(**ALLOWED)
    job_id = await submit(gateway, callback_url=f"{receiver.url}/hook")
    assert (await (await gateway.delete(f"/v1/jobs/{job_id}")).json())["status"] == "cancelled"
    bodies = await receiver.calls(3)
    assert [body["status"] for body in bodies] == ["cancelled"] * 3
    assert [headers["Imagegen-Attempt"] for headers, _ in receiver.heard] == ["1", "2", "3"]
    await worker.take()


async def test_a_call_outlives_the_gateway(house: House, receiver: Receiver) -> None:
    receiver.answers = [503]
    gateway, worker = await house.gateway(**ALLOWED), await house.worker(**ALLOWED)
    job_id = await submit(gateway, callback_url=receiver.url)
    await worker.take()
    await worker.fail(job_id, "node_failed", "no luck")
    await receiver.calls(1)
    await house.stop(gateway)
    await house.gateway(**ALLOWED)
    assert (await receiver.calls(2))[1]["error"]["code"] == "node_failed"


async def test_a_receiver_that_is_gone_or_never_answers_well_is_left_alone(house: House, receiver: Receiver) -> None:
    worker = await house.worker()
    policy = CallbackPolicy(SECRET, allow_private=True)
    webhooks = asyncio.create_task(Webhooks(worker.queue, policy, Backoff(0.05, 0.1, attempts=3)).run())
    receiver.answers = [410] + [500] * 10
    for _ in range(2):
        job_id = await submit_directly(worker, receiver.url)
        await worker.take()
        await worker.finish(job_id)
    await receiver.calls(4)
    names = worker.queue.names
    async with asyncio.timeout(10):
        while (await house.nc.jetstream().stream_info(names.callbacks_stream)).state.messages:
            await asyncio.sleep(0.05)
    webhooks.cancel()
    await asyncio.wait({webhooks}, timeout=5)
    assert len(receiver.heard) == 4


async def submit_directly(worker: HandWorker, url: str) -> str:
    """Queue a job that no gateway has checked."""
    job = Job(
        job_id=str(uuid4()),
        kind=JobKind.GENERATE,
        mode="paint",
        parameters={},
        submitted_at=time.time(),
        callback_url=url,
    )
    await worker.queue.submit(job)
    return job.job_id


# -- where it may go -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.9.9", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1",
        "fec0::1", "feff::1", "febf::1", "fd00::1", "4000::1", "5f00::1", "100::1", "100:0:0:1::1", "3fff::1",
        "3ffe::1",
        "::127.0.0.1", "::8.8.8.8", "::ffff:0:127.0.0.1", "64:ff9b:1::1", "64:ff9b::10.0.0.1", "2002:a9fe:a9fe::1",
        "2001:0:808:808:0:0:80ff:fffe", "2001:1::1", "2001:10::1", "2001:20::1", "2620:4f:8000::1", "ff0e::1",
        "2607:f8b0::5efe:127.0.0.1", "2607:f8b0::200:5efe:10.0.0.1", "192.0.0.8", "192.0.0.170", "192.0.2.1",
        "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.175.48.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    ],
)  # fmt: skip
def test_addresses_of_this_machine_and_its_networks_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "93.184.216.34", "192.0.1.1", "2606:4700:4700::1111", "2001:4860:4860::8888", "::ffff:1.1.1.1"),
        *("64:ff9b::8.8.8.8", "2002:808:808::1", "2607:f8b0::200:5efe:8.8.8.8", "100.128.0.1", "172.32.0.1"),
    ],
)
def test_addresses_of_the_internet_are(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1/", "not a public address"),
        ("http://localhost/", "not a public address"),
        ("http://2130706433/", "not a public address"),
        ("http://0x7f.1/", "not a public address"),
        ("http://[::ffff:169.254.169.254]/latest/meta-data", "not a public address"),
        ("http://name.invalid/", "cannot be resolved"),
        ("ftp://1.1.1.1/", "not an http or https URL"),
        ("file:///etc/passwd", "not an http or https URL"),
        ("//1.1.1.1/", "not an http or https URL"),
        ("http://user:pw@1.1.1.1/", "user name or a password"),
        ("http://1.1.1.1:99999/", "callback_url"),
    ],
)
async def test_a_callback_that_must_not_be_made_is_refused_with_the_job(house: House, url: str, said: str) -> None:
    gateway = await house.gateway(webhook_secret=SECRET)
    answer = await gateway.post("/v1/jobs", json={**BODY, "callback_url": url})
    assert answer.status == 422
    error = (await answer.json())["error"]
    assert error["field"] == "callback_url"
    assert said in error["message"]


async def test_without_a_secret_callbacks_are_refused_with_the_remedy(house: House) -> None:
    answer = await (await house.gateway()).post("/v1/jobs", json={**BODY, "callback_url": "http://1.1.1.1/"})
    assert answer.status == 422
    assert "IMAGEGEN_WEBHOOK_SECRET" in (await answer.json())["error"]["message"]


async def test_a_name_that_points_here_by_the_time_of_the_call_is_not_called(
    house: House, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: public when the job comes in, loopback when it ends."""
    loop = asyncio.get_running_loop()
    answers = [("93.184.216.34", 80)]
    asked: list[str] = []
    real = loop.getaddrinfo

    async def resolve(host: Any, port: Any, **options: Any) -> Any:
        if host != "rebinding.example":
            return await real(host, port, **options)
        asked.append(host)
        address, _ = answers[0]
        return [(2, 1, 6, "", (address, port))]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    policy = CallbackPolicy(SECRET)
    port = receiver.url.rpartition(":")[2]
    await policy.check(f"http://rebinding.example:{port}/")
    answers[0] = ("127.0.0.1", 80)
    with pytest.raises(InvalidRequest, match="not a public address"):
        await policy.check(f"http://rebinding.example:{port}/")
    worker = await house.worker()
    webhooks = asyncio.create_task(Webhooks(worker.queue, policy, Backoff(0.05, 0.1, attempts=2)).run())
    job_id = await submit_directly(worker, f"http://rebinding.example:{port}/")
    await worker.take()
    asked.clear()
    await worker.finish(job_id)
    async with asyncio.timeout(10):
        while (await house.nc.jetstream().stream_info(worker.queue.names.callbacks_stream)).state.messages:
            await asyncio.sleep(0.05)
    webhooks.cancel()
    await asyncio.wait({webhooks}, timeout=5)
    assert asked
    assert receiver.heard == []


def test_the_signature_is_over_time_and_body() -> None:
    header = sign("s", b"{}", 1700000000)
    mac = hmac.new(b"s", b"1700000000.{}", hashlib.sha256).hexdigest()
    assert header == f"t=1700000000,v1={mac}"
    assert verify("s", b"{}", header, now=1700000001)
    for broken in ("", "t=,v1=", "t=x,v1=y", header.replace("v1=", "v0="), header[:-1], "t=9" * 400):
        assert not verify("s", b"{}", broken, now=1700000001)


async def test_they_stop_although_a_cancellation_is_lost(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11's `wait_for`, which every fetch waits with, loses one that comes together with its answer."""
    entered = asyncio.Event()

    async def deaf_at_first(*_: object) -> None:
        entered.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(3600)

    monkeypatch.setattr(consumer, "_lane", deaf_at_first)
    running = asyncio.create_task(Webhooks(queue, CallbackPolicy("secret", True)).run())
    await entered.wait()
    await asyncio.wait_for(stop([running]), 20)
    assert running.cancelled()
