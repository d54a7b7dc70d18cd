"""The ways to run the trivial job: ComfyUI's own API, and each API of the bridge."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import uuid4

import aiohttp
from nats.aio.client import Client

from benchmarks.trivial_job import body, graph

Job = Callable[[int], Awaitable[None]]
"""Takes the colour of the image."""


class Raw:
    """ComfyUI's own API over one websocket that stays open."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._client = uuid4().hex
        self._waiting: dict[str, asyncio.Future[None]] = {}

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Job]:
        async with self._session.ws_connect(f"{self._url}/ws", params={"clientId": self._client}) as socket:
            reader = asyncio.create_task(self._read(socket))
            yield self.run
            reader.cancel()

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if (prompt_id := ended(message)) in self._waiting:
                self._waiting.pop(prompt_id).set_result(None)

    async def run(self, color: int) -> None:
        prompt_id = str(uuid4())
        self._waiting[prompt_id] = future = asyncio.get_running_loop().create_future()
        await post(self._session, self._url, self._client, prompt_id, color)
        await future
        await fetch(self._session, self._url, prompt_id)


async def raw(session: aiohttp.ClientSession, url: str, color: int) -> None:
    """One job over ComfyUI's own API, with a websocket of its own."""
    client, prompt_id = uuid4().hex, str(uuid4())
    async with session.ws_connect(f"{url}/ws", params={"clientId": client}) as socket:
        await post(session, url, client, prompt_id, color)
        async for message in socket:
            if ended(message) == prompt_id:
                break
    await fetch(session, url, prompt_id)


async def post(session: aiohttp.ClientSession, url: str, client: str, prompt_id: str, color: int) -> None:
    prompt = {"prompt": graph(color), "client_id": client, "prompt_id": prompt_id}
    async with session.post(f"{url}/prompt", json=prompt) as response:
        answer = await response.text()
        assert response.status == 200, answer


def ended(message: aiohttp.WSMessage) -> str:
    """The id of the prompt whose end a frame reports; empty for other frames."""
    if message.type is aiohttp.WSMsgType.TEXT:
        event = json.loads(message.data)
        if event["type"] == "executing" and event["data"]["node"] is None:
            return event["data"].get("prompt_id", "")
    return ""


async def fetch(session: aiohttp.ClientSession, url: str, prompt_id: str) -> None:
    async with session.get(f"{url}/history/{prompt_id}") as response:
        image = (await response.json())[prompt_id]["outputs"]["4"]["images"][0]
    async with session.get(f"{url}/view", params=image) as response:
        assert len(await response.read()) > 0


async def by_rest(session: aiohttp.ClientSession, url: str, color: int) -> None:
    """One synchronous request."""
    async with session.post(f"{url}/v1/generate-image", json=body(color)) as response:
        answer = await response.json()
        assert response.status == 200, answer
        assert answer["image_bytes_b64"]


async def by_nats(nc: Client, color: int) -> None:
    """One NATS request."""
    reply = await nc.request("ai.vision.imagegen.request", json.dumps(body(color)).encode(), timeout=300)
    assert json.loads(reply.data).get("image_bytes_b64"), reply.data[:500]


async def by_events(session: aiohttp.ClientSession, url: str, color: int) -> None:
    """Submit, follow the events over a WebSocket, fetch the image."""
    async with session.post(f"{url}/v1/jobs", json=body(color)) as response:
        job = await response.json()
        assert response.status == 202, job
    async with session.ws_connect(f"{url}/v1/jobs/{job['job_id']}/events") as socket:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT and json.loads(message.data)["type"] == "done":
                break
    async with session.get(f"{url}/v1/jobs/{job['job_id']}/images/0") as response:
        assert response.status == 200
        assert len(await response.read()) > 0
