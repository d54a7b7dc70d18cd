"""What one client may ask: so much, so often, and in time. Each refusal names its limit, over REST and over NATS."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests
import websocket
from nats.aio.client import Client

from bridge.api.limits import MAX_CLIENTS, RateLimiter
from bridge.gateway.limits import RequestLimits
from bridge.settings import OPEN_RATE_PER_MINUTE, Settings
from tests.bridge.gateway_process import BODY, GatewayProcess, models_of, running_gateway

PREFIX = "test.limits"
BURST = 20
LIMITS = {
    "IMAGEGEN_MAX_BODY_BYTES": "4000",
    "IMAGEGEN_MAX_IMAGE_BYTES": "3000",
    "IMAGEGEN_MAX_FILE_BYTES": "3000",
    "IMAGEGEN_MAX_PIXELS": str(512 * 512),
    "IMAGEGEN_MAX_STEPS": "20",
    "IMAGEGEN_MAX_IMAGES": "3",
    "IMAGEGEN_MAX_PENDING": "3",
    "IMAGEGEN_MAX_WAITS": "2",
    "IMAGEGEN_BODY_TIMEOUT_S": "0.5",
    "IMAGEGEN_IDLE_TIMEOUT_S": "1",
    "IMAGEGEN_JOB_TIMEOUT_S": "20",
}


@pytest.fixture(scope="module")
def tight(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with small limits and no limit of rate."""
    with running_gateway(nats_url, tmp_path_factory.mktemp("tight"), prefix=PREFIX, **LIMITS) as gateway:
        yield gateway


@pytest.fixture
async def nc(nats_url: str, tight: GatewayProcess) -> AsyncIterator[Client]:
    """The models are known, and the queue is empty afterwards."""
    async with models_of(nats_url, PREFIX) as client:
        yield client
        await client.jetstream().purge_stream(tight.names.stream)


async def over_nats(nc: Client, gateway: GatewayProcess, body: dict[str, Any]) -> dict[str, Any]:
    return json.loads((await nc.request(gateway.names.request, json.dumps(body).encode(), timeout=20)).data)


async def post(gateway: GatewayProcess, path: str = "/v1/jobs", **options: Any) -> requests.Response:
    return await asyncio.to_thread(gateway.post, path, **options)


# -- how much ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "field", "limit"),
    [
        ({"width": 528, "height": 512}, "width", "max_pixels"),
        ({"num_inference_steps": 21}, "num_inference_steps", "max_steps"),
        ({"num_images": 4}, "num_images", "max_images"),
    ],
)
async def test_a_value_over_a_limit_is_refused_by_its_name(
    tight: GatewayProcess, nc: Client, values: dict[str, int], field: str, limit: str
) -> None:
    answer = await post(tight, json=BODY | values)
    assert answer.status_code == 422
    details = answer.json()["error"]["details"]
    assert [detail["field"] for detail in details] == [field]
    assert limit in details[0]["message"]
    assert (await over_nats(nc, tight, BODY | values))["error"]["details"] == details


async def test_all_limits_that_are_exceeded_are_named_at_once(tight: GatewayProcess, nc: Client) -> None:
    answer = await post(tight, json=BODY | {"width": 1024, "num_inference_steps": 21, "num_images": 4})
    fields = {detail["field"] for detail in answer.json()["error"]["details"]}
    assert fields == {"width", "num_inference_steps", "num_images"}


async def test_values_at_the_limits_are_accepted(tight: GatewayProcess, nc: Client) -> None:
    body = BODY | {"num_inference_steps": 20, "num_images": 3}
    assert (await post(tight, json=body)).status_code == 202


async def test_a_body_over_the_limit_is_refused_by_both_doors(tight: GatewayProcess, nc: Client) -> None:
    body = {"prompt": "x" * 4000}
    answer = await post(tight, json=body)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    assert "4000" in answer.json()["error"]["message"]
    assert (await over_nats(nc, tight, body))["error"]["code"] == "body_too_large"


def test_a_body_that_says_it_is_large_is_refused_before_it_comes(tight: GatewayProcess) -> None:
    head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", tight.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: 999999999\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_say_how_large_it_is_ends_at_the_limit(tight: GatewayProcess) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b'{"prompt": "' + b"x" * 1000

    try:
        answer = tight.post("/v1/jobs", data=endless(), headers={"Content-Type": "application/json"})
    except requests.ConnectionError:
        return  # It was hung up on before the answer could be read.
    assert answer.status_code == 413


async def test_a_full_queue_says_when_to_come_back(tight: GatewayProcess, nc: Client) -> None:
    for _ in range(3):
        assert (await post(tight, json=BODY)).status_code == 202
    answer = await post(tight, json=BODY)
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "queue_full"
    assert int(answer.headers["Retry-After"]) > 0
    assert (await over_nats(nc, tight, BODY))["error"]["code"] == "queue_full"


# -- how slow ------------------------------------------------------------------------------------------------------


def test_a_body_that_trickles_in_is_given_up(tight: GatewayProcess) -> None:
    head = (
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
    )
    answer = tight.raw(head)  # All that comes, to the end of the connection: it is closed.
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"slow_body" in answer
    assert b"body_timeout_s" in answer
    assert "Traceback" not in tight.log.read_text()


def test_a_form_that_trickles_in_is_given_up(tight: GatewayProcess) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    answer = tight.raw(
        head + b'Content-Length: 500\r\n\r\n--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na'
    )
    assert answer.startswith(b"HTTP/1.1 408 "), answer


@pytest.mark.parametrize("start", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_headers_that_never_end_are_hung_up_on(tight: GatewayProcess, start: bytes) -> None:
    assert tight.raw(start, timeout=15) == b""


def test_headers_that_trickle_are_hung_up_on_too(tight: GatewayProcess) -> None:
    deadline = time.monotonic() + 15
    with socket.create_connection(("127.0.0.1", tight.port), timeout=10) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        try:
            while time.monotonic() < deadline:
                connection.sendall(b"x")
                time.sleep(0.1)
        except ConnectionError:
            return
    pytest.fail("the connection is still open")


def test_a_slow_client_keeps_nobody_else_waiting(tight: GatewayProcess) -> None:
    slow = [socket.create_connection(("127.0.0.1", tight.port)) for _ in range(50)]
    for connection in slow:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
    assert tight.get("/healthz").status_code == 200
    for connection in slow:
        connection.close()


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: y\r\n" * 500 + b"\r\n",
             b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n",
             b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"]
)  # fmt: skip
def test_headers_that_are_too_large_are_refused(tight: GatewayProcess, head: bytes) -> None:
    try:
        answer = tight.raw(head)
    except ConnectionError:
        return
    assert answer.split()[1] in (b"400", b"413", b"414", b"431")


# -- how many ------------------------------------------------------------------------------------------------------


async def test_so_many_wait_and_no_more_whatever_they_wait_for(tight: GatewayProcess, nc: Client) -> None:
    """Two waits: a stream of events and a synchronous request. A third of any kind is refused, by both doors."""
    events = f"ws://127.0.0.1:{tight.port}/v1/jobs/{uuid4()}/events"
    stream = await asyncio.to_thread(websocket.create_connection, events, timeout=10, suppress_origin=True)
    job_id = str(uuid4())
    waiting = asyncio.create_task(post(tight, "/v1/generate-image", json=BODY | {"job_id": job_id}))
    while (await asyncio.to_thread(tight.get, f"/v1/jobs/{job_id}")).status_code != 200:
        await asyncio.sleep(0.02)
    answer = await post(tight, "/v1/generate-image", json=BODY)
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "too_many_waits"
    assert answer.headers["Retry-After"]
    assert (await over_nats(nc, tight, BODY))["error"]["code"] == "too_many_waits"
    with pytest.raises(websocket.WebSocketBadStatusException, match="429"):
        await asyncio.to_thread(websocket.create_connection, events, timeout=10, suppress_origin=True)
    assert (await post(tight, json=BODY)).status_code == 202  # It does not wait.
    stream.close()
    await asyncio.to_thread(requests.delete, f"{tight.url}/v1/jobs/{job_id}", timeout=20)
    assert (await waiting).status_code == 409
    again = await asyncio.to_thread(websocket.create_connection, events, timeout=10, suppress_origin=True)
    again.close()


# -- how often -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paced(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that lets one client send BURST requests, and then one a minute."""
    folder = tmp_path_factory.mktemp("paced")
    tokens = folder / "tokens"
    tokens.write_text("first\nsecond\n")
    options = ["--rate-per-minute", "1", "--rate-burst", str(BURST), "--token-file", str(tokens)]
    with running_gateway(nats_url, folder, *options, prefix="test.limits.paced") as gateway:
        yield gateway


def test_a_client_that_asks_too_often_is_told_when_to_come_back(paced: GatewayProcess) -> None:
    first = {"Authorization": "Bearer first"}
    answers = [paced.get("/v1/modes", headers=first) for _ in range(BURST + 2)]
    assert [answer.status_code for answer in answers] == [200] * BURST + [429] * 2
    assert answers[0].headers["RateLimit-Policy"] == f'"requests";q={BURST};w={BURST * 60}'
    assert answers[0].headers["RateLimit"].startswith(f'"requests";r={BURST - 1};t=')
    refused = answers[-1]
    assert refused.json()["error"]["code"] == "too_many_requests"
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["RateLimit"].startswith('"requests";r=0;t=')
    # Another client is not concerned, and health is always told.
    assert paced.get("/v1/modes", headers={"Authorization": "Bearer second"}).status_code == 200
    assert paced.get("/healthz").status_code == 200
    assert "RateLimit" not in paced.get("/healthz").headers


def test_tokens_cannot_be_guessed_at_full_speed(paced: GatewayProcess) -> None:
    statuses = [paced.get("/v1/modes", headers={"Authorization": f"Bearer {n}"}).status_code for n in range(BURST + 1)]
    assert statuses == [401] * BURST + [429]


async def test_the_nats_door_has_the_same_rate(nats_url: str, paced: GatewayProcess) -> None:
    async with models_of(nats_url, "test.limits.paced") as nc:
        codes = [(await over_nats(nc, paced, {}))["error"]["code"] for _ in range(BURST + 1)]
    assert codes == ["invalid_request"] * BURST + ["too_many_requests"]


def test_a_bucket_fills_again_and_never_over_its_brim() -> None:
    now = 0.0
    limiter = RateLimiter(per_minute=60, burst=2, clock=lambda: now)
    assert [limiter.take("a").allowed for _ in range(3)] == [True, True, False]
    assert limiter.take("b").allowed
    now = 0.5
    assert not limiter.take("a").allowed
    now = 1.0
    assert limiter.take("a") == (True, 0, 1, 2)
    now = 3600.0
    assert [limiter.take("a").allowed for _ in range(3)] == [True, True, False]


def test_buckets_are_bounded_however_many_addresses_come() -> None:
    limiter = RateLimiter(per_minute=60, burst=1, clock=lambda: 0.0)
    for number in range(MAX_CLIENTS + 10):
        limiter.take(str(number))
    assert len(limiter._buckets) == MAX_CLIENTS
    assert not limiter.take(str(MAX_CLIENTS + 9)).allowed
    assert limiter.take("0").allowed


def test_loopback_has_no_rate_unless_asked_and_other_addresses_have() -> None:
    assert not RateLimiter.of(Settings())
    assert RateLimiter.of(Settings(rate_per_minute=5)).per_minute == 5
    assert RateLimiter.of(Settings(host="0.0.0.0", token="x")).per_minute == OPEN_RATE_PER_MINUTE
    assert not RateLimiter.of(Settings(host="0.0.0.0", token="x", rate_per_minute=0))


def test_limits_are_inclusive() -> None:
    limits = RequestLimits(max_pixels=100, max_steps=2, max_images=2)
    assert limits.problems({"width": 10, "height": 10, "num_inference_steps": 2, "num_images": 2}) == []
    assert len(limits.problems({"width": 10, "height": 11, "num_inference_steps": 3, "num_images": 3})) == 3


def test_settings_reach_the_gateway_that_up_starts(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, max_steps=7, rate_per_minute=0, log_prompts=True, allowed_hosts=("a", "b"))
    assert Settings.from_environment(settings.environment(with_token=True)) == settings
