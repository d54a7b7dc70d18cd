"""A NATS server whose store is full: jobs are refused or fail with that cause, none is lost, and it recovers."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from uuid import uuid4

import pytest

from bridge.broker.connection import connect
from bridge.broker.images import ImageStore
from bridge.broker.jobs import JobQueue
from bridge.contract import ImageExpired, Job, JobKind, StorageFull, Unavailable
from bridge.names import Names
from bridge.service.installer import Installation
from tests.faults.cluster import Cluster

ROOM = 3 * 1024 * 1024


async def test_without_room_a_image_is_refused_with_that_cause_and_jobs_are_told_to_come_back(
    installation: Installation, tmp_path: Path
) -> None:
    cluster = Cluster(tmp_path / "full", installation, jetstream={"max_file_store": ROOM})
    try:
        cluster.wait_nats()
        nc = await connect(cluster.nats_url, "test")
        store = ImageStore(nc.jetstream(), "images", max_bytes=-1)
        await store.open(max_age_s=3600)
        kept = await store.put("a", os.urandom(1_000_000))
        with pytest.raises(StorageFull, match="no space for the image"):
            await asyncio.gather(*(store.put(f"b{number}", os.urandom(1_000_000)) for number in range(8)))
        assert len(await store.get(kept)) == 1_000_000  # What was there is still there.
        await nc.close()
    finally:
        cluster.close()


async def test_a_store_over_its_size_drops_the_oldest_images_and_takes_the_new(
    installation: Installation, tmp_path: Path
) -> None:
    cluster = Cluster(tmp_path / "bounded", installation)
    try:
        cluster.wait_nats()
        nc = await connect(cluster.nats_url, "test")
        store = ImageStore(nc.jetstream(), "images", max_bytes=ROOM)
        await store.open(max_age_s=3600)
        images = [await store.put(str(number), os.urandom(700_000)) for number in range(8)]
        assert len(await store.get(images[-1])) == 700_000
        with pytest.raises(ImageExpired, match="no longer kept"):
            await store.get(images[0])
        with pytest.raises(StorageFull, match="too large for a store"):
            await store.put("huge", bytes(2 * 1024 * 1024))
        await nc.close()
    finally:
        cluster.close()


async def test_a_server_with_little_room_gets_a_smaller_store(installation: Installation, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "little", installation, jetstream={"max_file_store": 300 * 1024**2})
    try:
        cluster.wait_nats()
        nc = await connect(cluster.nats_url, "test")
        store = ImageStore(nc.jetstream(), "images", max_bytes=1024**3)
        await store.open(max_age_s=3600)
        assert (await nc.jetstream().stream_info("OBJ_images")).config.max_bytes == 256 * 1024**2
        with pytest.raises(StorageFull, match="too large for a store of 268435456"):
            await store.put("huge", bytes(130 * 1024**2))
        await nc.close()
    finally:
        cluster.close()


async def test_any_object_store_client_reads_a_image_and_twice_stored_is_stored_once(
    installation: Installation, tmp_path: Path
) -> None:
    cluster = Cluster(tmp_path / "plain", installation)
    try:
        cluster.wait_nats()
        nc = await connect(cluster.nats_url, "test")
        store = ImageStore(nc.jetstream(), "images")
        await store.open(max_age_s=3600)
        data = os.urandom(1_300_000)  # three chunks
        first, again = await store.put("x/0.png", data), await store.put("x/0.png", data)
        assert first == again
        assert await store.get(first) == data
        plain = await nc.jetstream().object_store("images")
        found = await plain.get("x/0.png")
        assert found.data == data
        assert found.info.digest == first.digest
        state = (await nc.jetstream().stream_info("OBJ_images")).state
        assert state.messages == 4  # three chunks and the record of them
        await nc.close()
    finally:
        cluster.close()


async def test_what_the_broker_could_not_write_was_not_accepted(installation: Installation, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "kill", installation)
    try:
        cluster.wait_nats()
        nc = await connect(cluster.nats_url, "test")
        queue = await JobQueue.open(nc, max_pending=4, names=Names("t"))
        cluster.processes["nats"].kill()
        job = Job(job_id=str(uuid4()), kind=JobKind.GENERATE, mode="m", parameters={}, submitted_at=time.time())
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await queue.submit(job)
        assert time.monotonic() - began < 15
        cluster.processes["nats"].start()
        cluster.wait_nats()
        async with asyncio.timeout(20):
            while not nc.is_connected:
                await asyncio.sleep(0.05)
        assert (await queue.submit(job)).job_id == job.job_id
        await nc.close()
    finally:
        cluster.close()
