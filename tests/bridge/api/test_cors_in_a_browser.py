"""CORS as a real browser sees it: a page of a listed origin reads answers and errors, any other page nothing."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright

from scripts.export_workflows import CHROMIUM, CHROMIUM_FLAGS
from tests.bridge.gateway_process import BODY, GatewayProcess, ModelsThread, running_gateway

TOKEN = "open sesame"
FETCH = """async ([url, method, headers, body]) => {
    try {
        const answer = await fetch(url, {method, headers, body: body && JSON.stringify(body)});
        return {status: answer.status, location: answer.headers.get('Location'), json: await answer.json()};
    } catch (failure) {
        return {failure: String(failure)};
    }
}"""
LISTEN = """(url) => new Promise((told) => {
    const socket = new WebSocket(url);
    socket.onopen = () => told('open');
    socket.onerror = () => told('refused');
})"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - the base class calls it that


@pytest.fixture
async def pages(nats_url: str, tmp_path: Path) -> AsyncIterator[tuple[GatewayProcess, Page, Page]]:
    """A gateway, a page of an origin that it lists, and the same page under another name."""
    (tmp_path / "state").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html><title>an app</title>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    origin = f"http://localhost:{server.server_port}"
    options = ("--cors-origins", origin, "--token", TOKEN)
    with running_gateway(nats_url, tmp_path / "state", *options, prefix="test.cors.browser") as gateway:
        models = ModelsThread(nats_url, gateway.names)
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
            listed, other = await browser.new_page(), await browser.new_page()
            await listed.goto(origin)
            await other.goto(origin.replace("localhost", "127.0.0.1"))
            yield gateway, listed, other
            await browser.close()
        models.close()
    server.shutdown()


async def test_a_listed_page_reads_all_and_another_page_nothing(pages: tuple[GatewayProcess, Page, Page]) -> None:
    gateway, listed, other = pages
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", "Idempotency-Key": "k"}

    async def fetch(page: Page, path: str, method: str = "GET", body: Any = None) -> dict[str, Any]:
        return await page.evaluate(FETCH, [gateway.url + path, method, headers, body])

    queued = await fetch(listed, "/v1/jobs", "POST", BODY)
    assert (queued["status"], queued["location"]) == (202, f"/v1/jobs/{queued['json']['job_id']}")
    assert (await fetch(listed, queued["location"]))["json"]["status"] == "queued"
    refused = await fetch(listed, "/v1/jobs", "POST", {"prompt": " "})
    assert (refused["status"], refused["json"]["error"]["field"]) == (422, "Idempotency-Key")
    cancelled = await fetch(listed, queued["location"], "DELETE")
    assert cancelled["json"]["outcome"] == "dequeued"
    for path, method, body in (("/v1/modes", "GET", None), ("/v1/jobs", "POST", BODY), ("/healthz", "GET", None)):
        assert "Failed to fetch" in (await fetch(other, path, method, body))["failure"]
    events = f"{gateway.url.replace('http', 'ws')}{queued['location']}/events"
    assert await other.evaluate(LISTEN, events) == "refused"
