"""The broker's stores: made once, changed where settings changed, smaller where the disk is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.api import KeyValueConfig, ObjectStoreConfig, StorageType

from bridge.broker.connection import connect
from bridge.broker.jobs import JobQueue
from bridge.contract import Job, StorageFull, Unavailable, read_answer
from bridge.names import Names
from bridge.service.children.comfyui import free_port
from bridge.service.nats import nats_server_program
from bridge.settings import Retention
from tests.bridge.broker.test_jobs import job
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


class Server:
    """A nats-server of one test, which can be stopped, and started again with another configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **jetstream: Any) -> None:
        config = self.folder / "nats.conf"
        values = {"store_dir": str(self.folder / "store"), **jetstream}
        config.write_text(json.dumps({"host": "127.0.0.1", "port": self.port, "jetstream": values}))
        self.process = subprocess.Popen([nats_server_program(), "-c", str(config), "-l", str(self.folder / "log")])

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.stop()


MIB = 2**20


@pytest.mark.parametrize(
    ("disk", "settings"),
    [
        (110 * MIB, 64 * MIB),  # the same settings, and a disk that could not hold as much again
        (70 * MIB, 64 * MIB),
        (60 * MIB, 64 * MIB),  # less than was reserved
        (4096 * MIB, 16 * MIB),  # settings that allow less than the stores hold
        (4096 * MIB, 256 * MIB),
        (110 * MIB, 256 * MIB),  # settings that ask for more than there is
    ],
)
async def test_a_restart_keeps_what_the_stores_hold_whatever_the_disk_has_left(
    server: Server, disk: int, settings: int
) -> None:
    async def open_queue(size: int) -> JobQueue:
        nc = await connect(server.url, "test")
        small = Retention(jobs_s=86400, images_s=86400, jobs_bytes=8 * MIB, images_bytes=size)
        return await JobQueue.open(nc, max_pending=4, retention=small)

    queue = await open_queue(64 * MIB)
    kept = [
        await queue.store_image("0d4c1d3a-3a3d-4b9f-8a51-0b2f3c4d5e6f", n, "png", os.urandom(4 * MIB))
        for n in range(10)
    ]
    await queue.nc.close()
    for _ in range(2):
        server.stop()
        server.start(max_file_store=disk)
        queue = await open_queue(settings)
        for image in kept:
            assert len(await queue.image(image)) == 4 * MIB
        await queue.nc.close()


async def test_a_bound_below_the_jobs_that_wait_loses_none_of_them(nc: Client) -> None:
    names, js = Names(f"few{uuid.uuid4().hex}"), nc.jetstream()
    small = Retention(jobs_bytes=2**24, images_bytes=2**25)
    await JobQueue.open(nc, max_pending=10, names=names, retention=small)
    for n in range(8):
        await js.publish(f"{names.jobs}.generate", b"%d" % n)
    await JobQueue.open(nc, max_pending=3, names=names, retention=small)
    info = await js.stream_info(names.stream)
    assert (info.state.messages, info.state.first_seq) == (8, 1)


async def test_what_an_operator_has_set_on_a_stream_stays(nc: Client) -> None:
    names, js = Names(f"own{uuid.uuid4().hex}"), nc.jetstream()
    small = Retention(jobs_bytes=2**24, images_bytes=2**25)
    await JobQueue.open(nc, max_pending=10, names=names, retention=small)
    config = (await js.stream_info(names.stream)).config
    await js.update_stream(config.evolve(description="ours"))
    await JobQueue.open(nc, max_pending=20, names=names, retention=small)
    config = (await js.stream_info(names.stream)).config
    assert (config.description, config.max_msgs) == ("ours", 20)


async def test_a_full_store_of_inputs_refuses_new_ones_and_keeps_those_of_jobs_that_wait(nc: Client) -> None:
    names = Names(f"inputs{uuid.uuid4().hex}")
    queue = await JobQueue.open(
        nc, max_pending=10, names=names, retention=Retention(jobs_bytes=2**24, images_bytes=17 * MIB)
    )
    kept = [await queue.inputs.put(f"a/{n}.png", os.urandom(4 * MIB)) for n in range(4)]
    with pytest.raises(StorageFull, match="jobs that wait"):
        await queue.inputs.put("a/9.png", os.urandom(4 * MIB))
    for image in kept:
        assert len(await queue.inputs.get(image)) == 4 * MIB
    listed = await queue.inputs.kept()
    assert [image.name for image in listed][:4] == [f"a/{n}.png" for n in range(4)]
    await queue.inputs.delete(listed[0])
    assert len(await queue.inputs.get(await queue.inputs.put("a/9.png", os.urandom(3 * MIB)))) == 3 * MIB


DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda folder: (folder / "o.dat").write_bytes(os.urandom(200)),
    "truncated": lambda folder: (folder / "o.dat").write_bytes((folder / "o.dat").read_bytes()[:5]),
    "emptied": lambda folder: (folder / "o.dat").write_bytes(b""),
    "position gone": lambda folder: (folder / "o.dat").unlink(),
    "configuration emptied": lambda folder: (folder / "meta.inf").write_bytes(b""),
    "configuration garbage": lambda folder: (folder / "meta.inf").write_bytes(os.urandom(200)),
    "sum wrong": lambda folder: (folder / "meta.sum").write_bytes(b"xx"),
    "folder gone": shutil.rmtree,
}


async def restarted(server: Server, nc: Client) -> None:
    """Start the server and wait until a client that was connected before is connected again."""
    before = nc.stats["reconnects"]
    server.start()
    async with asyncio.timeout(30):
        while nc.stats["reconnects"] == before or not nc.is_connected:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_consumer_is_replaced_and_every_job_is_delivered(server: Server, damage: str) -> None:
    nc = await connect(server.url, "test")
    small = Retention(jobs_bytes=2**24, images_bytes=2**25)
    queue = await JobQueue.open(nc, max_pending=10, retention=small)
    sent = {(await queue.submit(job())).job_id for _ in range(4)}
    [first] = await (await queue.subscribe()).fetch(1, timeout=2)
    await first.ack_sync()
    await asyncio.sleep(0.3)  # The server writes the position a little later.
    server.stop()
    [folder] = (server.folder / "store").rglob(f"obs/{queue.names.consumer}")
    DAMAGES[damage](folder)
    await restarted(server, nc)
    subscription, got = None, set[str]()
    async with asyncio.timeout(30):
        while len(got) < 3:
            try:
                subscription = subscription or await queue.subscribe()
                for msg in await subscription.fetch(1, timeout=1):
                    got.add(read_answer(Job, msg.data).job_id)
                    await msg.ack_sync()
            except (Unavailable, nats.errors.Error):
                continue
    assert got == sent - {read_answer(Job, first.data).job_id}
    # Once more, for a worker of another machine and after another restart.
    late = (await queue.submit(job())).job_id
    server.stop()
    await restarted(server, nc)
    async with asyncio.timeout(30):
        while late not in got:
            with contextlib.suppress(Unavailable, nats.errors.Error):
                [msg] = await (await queue.subscribe()).fetch(1, timeout=1)
                got.add(read_answer(Job, msg.data).job_id)
    await nc.close()


@pytest.mark.parametrize("seconds", [0.05, 0.5, 1, 99, 3599, 3600, 8 * 86400, 10**9])
async def test_every_retention_that_the_settings_take_starts_a_service(house: House, seconds: float) -> None:
    for values in ({"job_retention_s": seconds}, {"image_retention_s": seconds}, {}):  # also one after the other
        gateway = await house.gateway(**values)
        assert (await gateway.get("/readyz")).status == 200
        await house.worker(**values)
        await house.stop(gateway)
