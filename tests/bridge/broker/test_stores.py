"""The broker's stores: made once, changed where settings changed, smaller where the disk is."""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js.api import KeyValueConfig, ObjectStoreConfig, StorageType

from bridge.broker.connection import connect
from bridge.broker.jobs import JobQueue
from bridge.names import Names
from bridge.service.comfyui import free_port
from bridge.service.nats import nats_server_program
from bridge.settings import Retention
from tests.bridge.house import House


async def test_stores_of_an_earlier_version_and_other_settings_are_taken_over(nc: Client) -> None:
    names, js = Names(f"old{uuid.uuid4().hex}"), nc.jetstream()
    bucket = KeyValueConfig(bucket=names.states, ttl=86400, storage=StorageType.FILE, direct=True)
    states = await js.create_key_value(bucket)
    await states.put("0d4c1d3a-3a3d-4b9f-8a51-0b2f3c4d5e6f", b"{}")
    await js.create_object_store(names.images, ObjectStoreConfig(ttl=86400, storage=StorageType.FILE))
    for days in (7, 3):
        small = Retention(jobs_s=days * 86400.0, jobs_bytes=2**24, images_bytes=2**25)
        queue = await JobQueue.open(nc, max_pending=4, names=names, retention=small)
        assert (await js.stream_info(queue.states_stream)).config.max_age == days * 86400
    assert (await states.get("0d4c1d3a-3a3d-4b9f-8a51-0b2f3c4d5e6f")).value == b"{}"


async def test_a_small_disk_gets_smaller_stores(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "nats.conf"
    jetstream = {"store_dir": str(tmp_path), "max_file_store": 200_000_000}
    config.write_text(json.dumps({"host": "127.0.0.1", "port": port, "jetstream": jetstream}))
    server = subprocess.Popen([nats_server_program(), "-c", str(config), "-l", str(tmp_path / "log")])
    try:
        nc = await connect(f"nats://127.0.0.1:{port}", "test")
        queue = await JobQueue.open(nc, max_pending=4, retention=Retention())
        held = [
            (await nc.jetstream().stream_info(name)).config.max_bytes or 0
            for name in (queue.states_stream, f"OBJ_{queue.names.images}", f"OBJ_{queue.names.inputs}")
        ]
        assert sum(held) <= 200_000_000
        assert min(held) > 8 * 2**20
        image = await queue.store_image("0d4c1d3a-3a3d-4b9f-8a51-0b2f3c4d5e6f", 0, "png", b"image")
        assert await queue.image(image) == b"image"
        await nc.close()
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.mark.parametrize("seconds", [0.05, 0.5, 1, 99, 3599, 3600, 8 * 86400, 10**9])
async def test_every_retention_that_the_settings_take_starts_a_service(house: House, seconds: float) -> None:
    for values in ({"job_retention_s": seconds}, {"image_retention_s": seconds}, {}):  # also one after the other
        gateway = await house.gateway(**values)
        assert (await gateway.get("/readyz")).status == 200
        await house.worker(**values)
        await house.stop(gateway)
