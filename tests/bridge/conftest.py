"""A real nats-server of this test session, on a free loopback port."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from bridge.broker.connection import connect
from bridge.broker.jobs import JobQueue
from bridge.service.children.comfyui import free_port
from bridge.service.nats import nats_server_program
from tests.bridge.house import House, write_mode

MAX_PENDING = 4


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    store = tmp_path_factory.mktemp("nats")
    server = subprocess.Popen(
        [nats_server_program(), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(store), "-l", str(store / "log")]
    )
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < deadline, (store / "log").read_text()
            time.sleep(0.05)
    yield f"nats://127.0.0.1:{port}"
    server.terminate()
    server.wait(timeout=10)


@pytest.fixture
async def nc(nats_url: str) -> AsyncIterator[Client]:
    client = await connect(nats_url, "test")
    yield client
    await client.close()


@pytest.fixture
async def queue(nc: Client) -> AsyncIterator[JobQueue]:
    """A queue that is empty and holds MAX_PENDING jobs."""
    opened = await JobQueue.open(nc, max_pending=MAX_PENDING)
    await opened.start_listening()
    yield opened
    await nc.jetstream().purge_stream("IMAGEGEN_JOBS")


@pytest.fixture
async def house(nc: Client, nats_url: str, tmp_path: Path) -> AsyncIterator[House]:
    """An installation of its own, with the small graph as mode `paint`."""
    write_mode(tmp_path / "workflows", "paint")
    opened = House(nc, nats_url, tmp_path)
    yield opened
    await opened.close()
