"""The Python client and a service that cannot be had for real: it falls silent, breaks off, or moves."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from bridge.client import (
    AnswerTimeout,
    AsyncImageGenClient,
    BadUrl,
    ClientClosed,
    ClientError,
    ImageGenClient,
    LoopThread,
    ServiceUnreachable,
    UnexpectedAnswer,
    Unsendable,
)
from bridge.contract import CancelOutcome, ImageGenResponse, JobEvent, JobState, ModeList
from bridge.service.children.comfyui import free_port

STATE: dict[str, Any] = {
    "job_id": "j",
    "kind": "generate",
    "mode": "paint",
    "status": "running",
    "parameters": {"prompt": "a fox"},
    "submitted_at": 0.0,
    "image_format": "png",
}


def state(status: str) -> JobState:
    return JobState.model_validate({**STATE, "status": status})


def event(kind: str, **fields: Any) -> JobEvent:
    return JobEvent.model_validate({"type": kind, "job_id": "j", **fields})


class ScriptedService:
    """Answers as its fields say, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status = "running"
        self.streams: list[list[JobEvent]] = []
        """What each event stream sends before it breaks off; without any left there is no WebSocket."""
        self.generate_s = 0.0
        self.silent_streams = False
        """Event streams open, answer pings, and say nothing."""
        self.retry_after = "5"
        self.page_status = 200
        self.refusals: list[int] = []
        """Statuses of the next answers about a job."""
        self._loop = LoopThread("scripted service")
        self.url = self._loop.wait(self._start())

    async def _start(self) -> str:
        @web.middleware
        async def keep(request: web.Request, handler: Any) -> web.StreamResponse:
            self.asked.append(f"{request.method} {request.path}")
            return await handler(request)

        app = web.Application(middlewares=[keep])
        app.add_routes(
            [
                web.post("/v1/generate-image", self._generate),
                web.get("/v1/jobs/{job}", self._job),
                web.delete("/v1/jobs/{job}", self._cancel),
                web.get("/v1/jobs/{job}/events", self._events),
                web.get("/v1/jobs/{job}/images/{index}", self._page),
                web.get("/v1/modes", self._moved),
                web.get("/elsewhere", self._modes),
                web.get("/v1/workers", self._page),
                web.get("/v1/model-info", self._refusal),
                web.post("/v1/load-model", self._silence),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port := free_port())
        await site.start()
        return f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        self._loop.stop(self._runner.cleanup())

    async def _generate(self, request: web.Request) -> web.Response:
        job_id = (await request.json())["job_id"]
        await asyncio.sleep(self.generate_s)
        answer = ImageGenResponse.of(state("done"), ["QUJD"]).model_copy(update={"job_id": job_id})
        return web.Response(text=ImageGenResponse.model_dump_json(answer), content_type="application/json")

    async def _job(self, request: web.Request) -> web.Response:
        if request.match_info["job"] == "page":
            return await self._page(request)
        if self.refusals:
            return web.Response(status=self.refusals.pop(), text="<html>busy</html>", content_type="text/html")
        if self.status == "unknown":
            return web.json_response({"error": {"code": "unknown_job", "message": "no such job"}}, status=404)
        return web.json_response({**STATE, "status": self.status})

    async def _cancel(self, request: web.Request) -> web.Response:
        outcome = next(iter(CancelOutcome)).value
        return web.json_response({**STATE, "status": "cancelled", "outcome": outcome, "message": "stopped"})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if not self.streams and not self.silent_streams:
            return web.Response(status=400)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.silent_streams:
            await socket.receive()
            return socket
        for each in self.streams.pop(0):
            await socket.send_str(each.model_dump_json(exclude_none=True))
        return socket

    async def _moved(self, request: web.Request) -> web.Response:
        raise web.HTTPFound("/elsewhere")

    async def _modes(self, request: web.Request) -> web.Response:
        return web.Response(text=ModeList(modes=[], details=[]).model_dump_json())

    async def _page(self, request: web.Request) -> web.Response:
        text = "<html>another program</html>"
        return web.Response(text=text, status=self.page_status, content_type="text/html")

    async def _refusal(self, request: web.Request) -> web.Response:
        body = {"error": {"code": "not_ready", "message": "ComfyUI starts", "hint": "of a newer service"}}
        return web.json_response(body, status=503, headers={"Retry-After": self.retry_after})

    async def _silence(self, request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()


@pytest.fixture
def scripted() -> Iterator[ScriptedService]:
    service = ScriptedService()
    yield service
    service.stop()


@pytest.fixture
def client(scripted: ScriptedService) -> Iterator[ImageGenClient]:
    with ImageGenClient(scripted.url) as opened:
        yield opened


def test_an_error_of_the_service_carries_its_fields(client: ImageGenClient) -> None:
    with pytest.raises(ClientError, match="ComfyUI starts") as caught:
        client.model_info()
    error = caught.value
    assert (error.status, error.code, error.message, error.retry_after_s) == (503, "not_ready", "ComfyUI starts", 5.0)
    assert error.temporary


def test_another_program_at_the_url_is_named(client: ImageGenClient) -> None:
    with pytest.raises(UnexpectedAnswer, match=f"{client.url} answered /v1/workers with status 200 .* check the URL"):
        client.workers()


def test_a_redirect_is_followed(client: ImageGenClient) -> None:
    assert client.modes().details == []


def test_where_nothing_answers_the_url_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with ImageGenClient(url) as client, pytest.raises(ServiceUnreachable, match="imagegen up") as caught:
        client.modes()
    assert (caught.value.url, caught.value.status, caught.value.code) == (url, 0, "unreachable")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8005", "has no scheme; write http://localhost:8005"),
        ("127.0.0.1:8005", "has no scheme; write http://127.0.0.1:8005"),
        ("images.example.org", "has no scheme; write http://images.example.org"),
        ("//127.0.0.1:8005", "has no scheme; write http://127.0.0.1:8005"),
        ("", "has no scheme; write http://127.0.0.1:8005"),
        ("http://[broken", "cannot be read"),
        ("http://localhost:99999", "cannot be read"),
        ("http://localhost:port", "cannot be read"),
        ("ftp://localhost", "is not an http or https URL"),
        ("http://", "is not an http or https URL"),
        ("http:///path", "is not an http or https URL"),
        ("nats://127.0.0.1:4222", "is not an http or https URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_said(url: str, said: str) -> None:
    with ImageGenClient(url) as client:
        for ask in (client.modes, lambda: client.wait("j"), lambda: client.generate("a fox", on_event=print)):
            with pytest.raises(BadUrl) as caught:
                ask()
            assert said in caught.value.message
            assert not caught.value.temporary


@pytest.mark.parametrize("token", ["two\nlines", "\r", "\0"])
def test_a_token_that_no_header_can_carry_is_an_error_of_the_client(scripted: ScriptedService, token: str) -> None:
    with ImageGenClient(scripted.url, token=token) as client, pytest.raises(ClientError):
        client.modes()


def test_a_value_that_json_cannot_carry_is_an_error_of_the_client(client: ImageGenClient) -> None:
    with pytest.raises(Unsendable, match="not JSON serializable"):
        client.generate("a fox", seed={7})


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("5", 5, 5),
        ("0.5", 0.5, 0.5),
        ("-3", 0, 0),
        ("Fri, 31 Dec 2100 23:59:59 GMT", 1e9, 1e10),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("inf", None, None),
        ("nan", None, None),
        ("soon", None, None),
        ("Wed, 99 Foo 2015", None, None),
        ("", None, None),
    ],
)
def test_when_to_come_back_is_a_number_or_a_date(
    client: ImageGenClient, scripted: ScriptedService, text: str, low: float | None, high: float | None
) -> None:
    scripted.retry_after = text
    with pytest.raises(ClientError) as caught:
        client.model_info()
    told = caught.value.retry_after_s
    assert told is None if low is None or high is None else told is not None and low <= told <= high


@pytest.mark.parametrize("status", [200, 302, 404, 502, 503])
def test_a_page_in_place_of_an_answer_is_named(client: ImageGenClient, scripted: ScriptedService, status: int) -> None:
    scripted.page_status = status
    for ask in (
        client.workers,
        lambda: client.job_image("page"),
        lambda: client.job("page"),
        lambda: client.wait("page", patience_s=0),
    ):
        with pytest.raises(UnexpectedAnswer) as caught:
            ask()
        assert caught.value.status == status


def test_a_service_that_falls_silent_is_given_up(scripted: ScriptedService) -> None:
    silent = pytest.raises(AnswerTimeout, match=r"did not answer /v1/load-model within 0\.2 s")
    with ImageGenClient(scripted.url, timeout_s=0.2) as client, silent as caught:
        client.load_model("starter")
    assert (caught.value.status, caught.value.code, caught.value.timeout_s) == (0, "timeout", 0.2)


def test_a_stream_that_breaks_off_is_opened_again(client: ImageGenClient, scripted: ScriptedService) -> None:
    step = event("progress", phase="sample", value=1, maximum=2)
    scripted.streams = [[event("state", state=state("running")), step], [event("done", state=state("done"))]]
    assert [each.type for each in client.events("j")] == ["state", "progress", "done"]
    assert scripted.asked.count("GET /v1/jobs/j/events") == 2


def test_where_no_websocket_comes_through_the_end_of_the_job_does(
    client: ImageGenClient, scripted: ScriptedService
) -> None:
    threading.Timer(0.3, lambda: setattr(scripted, "status", "done")).start()
    assert client.wait("j").status == "done"


@pytest.mark.parametrize("blocked", ["silent", "refused", "closed"])
def test_the_end_is_told_where_the_websocket_tells_nothing(
    client: ImageGenClient, scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch, blocked: str
) -> None:
    monkeypatch.setattr("bridge.client.events.SILENCE_S", 0.1)
    scripted.silent_streams = blocked == "silent"
    scripted.streams = [[], [], []] if blocked == "closed" else []
    threading.Timer(0.3, lambda: setattr(scripted, "status", "done")).start()
    before = time.monotonic()
    told = list(client.events("j"))
    assert told[-1].state is not None
    assert told[-1].state.status == "done"
    assert time.monotonic() - before < 5


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("silent", [False, True], ids=["no websocket", "silent websocket"])
def test_a_job_is_followed_through_refusals_that_pass(
    client: ImageGenClient, scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch, status: int, silent: bool
) -> None:
    monkeypatch.setattr("bridge.client.events.SILENCE_S", 0.05)
    monkeypatch.setattr("bridge.client.events.RECONNECT_S", 0.05)
    scripted.silent_streams, scripted.refusals, scripted.status = silent, [status] * 2, "done"
    assert client.wait("j").status == "done"
    assert not scripted.refusals


def test_events_of_a_job_that_does_not_exist_are_an_error_at_once(
    client: ImageGenClient, scripted: ScriptedService
) -> None:
    scripted.streams = [[event("unknown")]]
    scripted.status = "unknown"
    with pytest.raises(ClientError) as caught:
        client.wait("j")
    assert (caught.value.status, caught.value.code) == (404, "unknown_job")


def test_events_are_heard_on_the_calling_thread_where_the_client_may_be_used(
    client: ImageGenClient, scripted: ScriptedService
) -> None:
    heard: list[tuple[str, threading.Thread, str]] = []

    def on_event(each: JobEvent) -> None:
        heard.append((each.type, threading.current_thread(), client.job("j").status))

    scripted.streams = [[event("started"), event("done", state=state("done"))]]
    answer = client.generate("a fox", on_event=on_event)
    assert client.images(answer) == [b"ABC"]
    assert heard == [(kind, threading.current_thread(), "running") for kind in ("started", "done")]
    assert scripted.asked[:2] == [f"GET /v1/jobs/{answer.job_id}/events", "POST /v1/generate-image"]


def test_ctrl_c_cancels_the_job(client: ImageGenClient, scripted: ScriptedService) -> None:
    scripted.generate_s = 30

    def press() -> None:
        """As soon as the service has the request."""
        while "POST /v1/generate-image" not in scripted.asked:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run started in the background ignores it
    try:
        threading.Thread(target=press, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            client.generate("a fox", job_id="j")
    finally:
        signal.signal(signal.SIGINT, before)
    assert scripted.asked[-1] == "DELETE /v1/jobs/j"


def test_what_on_event_raises_cancels_the_job_and_is_raised(client: ImageGenClient, scripted: ScriptedService) -> None:
    scripted.generate_s = 30
    scripted.streams = [[event("started")]]
    with pytest.raises(ZeroDivisionError):
        client.generate("a fox", job_id="j", on_event=lambda _: 1 / 0)
    assert scripted.asked[-1] == "DELETE /v1/jobs/j"


def test_one_client_serves_many_threads(client: ImageGenClient) -> None:
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(client.job("j").status)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answers == ["running"] * 8


def test_a_client_that_another_thread_closes_ends_its_calls(scripted: ScriptedService) -> None:
    scripted.generate_s = 30
    client = ImageGenClient(scripted.url)
    threading.Timer(0.3, client.close).start()
    with pytest.raises(ClientClosed):
        client.generate("a fox")
    assert client.job("j").status == "running", "the next request opens it again"
    client.close()


def test_a_client_that_nobody_closes_ends_with_the_program_and_says_nothing(scripted: ScriptedService) -> None:
    program = f"from bridge.client import ImageGenClient\nclient = ImageGenClient({scripted.url!r})\nclient.job('j')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout + done.stderr == ""


async def test_a_cancelled_call_cancels_the_job(scripted: ScriptedService) -> None:
    scripted.generate_s = 30
    async with AsyncImageGenClient(scripted.url) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.generate("a fox", job_id="j")
    assert scripted.asked[-1] == "DELETE /v1/jobs/j"


async def test_a_service_that_moves_is_found_where_the_function_says(scripted: ScriptedService) -> None:
    urls = [f"http://127.0.0.1:{free_port()}"]
    async with AsyncImageGenClient(lambda: urls[-1]) as client:
        with pytest.raises(ServiceUnreachable):
            await client.job("j")
        urls.append(scripted.url)
        assert (await client.job("j")).status == "running"


async def test_without_patience_a_service_that_went_away_is_reported_at_once() -> None:
    before = time.monotonic()
    async with AsyncImageGenClient(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(ServiceUnreachable):
            await client.wait("j", patience_s=0)
    assert time.monotonic() - before < 2
