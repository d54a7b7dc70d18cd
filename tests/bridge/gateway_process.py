"""`imagegen gateway` as a user starts it: a process of its own, on the session's nats-server, with its own prefix."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import requests
from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge.broker.connection import connect, subscribed
from bridge.names import Names
from bridge.service.children.comfyui import free_port
from tests.bridge.gateway.test_resolve import MODELS

START_TIMEOUT_S = 90.0
SMALL_STORES = ("--job-store-bytes", str(16 * 2**20), "--image-store-bytes", str(64 * 2**20))
"""The broker sets the room aside, and many prefixes share one disk here."""
BODY = {"prompt": "a lighthouse at dusk", "width": 512, "height": 512}


class GatewayProcess:
    """A running gateway, and the lines that it logs as JSON."""

    def __init__(self, nats_url: str, folder: Path, *arguments: str, prefix: str, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.names = Names(prefix)
        self.log = folder / f"gateway-{self.port}.log"
        command = [
            sys.executable,
            "-m",
            "bridge",
            "gateway",
            "--port",
            str(self.port),
            "--nats-url",
            nats_url,
        ]
        command += [
            "--nats-prefix",
            prefix,
            "--state-dir",
            str(folder),
            "--log-format",
            "json",
            *SMALL_STORES,
            *arguments,
        ]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("IMAGEGEN_")}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=clean | environment)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(requests.ConnectionError):
                requests.get(self.url + "/healthz", timeout=5)
                break
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=30, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return requests.post(self.url + path, timeout=30, **options)

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def line(self, **facts: Any) -> dict[str, Any]:
        """The first line with these facts, which may be on its way."""
        deadline = time.monotonic() + 10
        while True:
            for line in self.lines():
                if all(line.get(name) == value for name, value in facts.items()):
                    return line
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def raw(self, data: bytes, timeout: float = 20) -> bytes:
        """Everything that comes back for these bytes, to the end of the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            return b"".join(iter(lambda: connection.recv(65536), b""))


@contextlib.contextmanager
def running_gateway(
    nats_url: str, folder: Path, *arguments: str, prefix: str, **environment: str
) -> Iterator[GatewayProcess]:
    gateway = GatewayProcess(nats_url, folder, *arguments, prefix=prefix, **environment)
    try:
        yield gateway
    finally:
        gateway.close()


@contextlib.asynccontextmanager
async def models_of(nats_url: str, prefix: str) -> AsyncIterator[Client]:
    """What a worker says of its models, without the worker."""
    nc = await connect(nats_url, "test models")

    async def answer(msg: Msg) -> None:
        await msg.respond(MODELS.model_dump_json().encode())

    await nc.subscribe(Names(prefix).model_info, cb=answer)
    await subscribed(nc)
    yield nc
    await nc.close()


class ModelsThread:
    """The same for tests that are no coroutines: it answers from a thread, and asks the NATS door."""

    def __init__(self, nats_url: str, names: Names) -> None:
        self._names = names
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._models = models_of(nats_url, names.prefix)
        self._nc: Client = self._run(self._models.__aenter__())

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """The reply of the NATS door."""
        return json.loads(self._run(self._nc.request(self._names.request, json.dumps(body).encode(), timeout=20)).data)

    def close(self) -> None:
        self._run(self._models.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
