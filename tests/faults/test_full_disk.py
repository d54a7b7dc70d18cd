"""A disk that fills under the NATS server: the probe says so, and says so still when only the disk has recovered."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats.errors
import pytest
import requests

from bridge.broker.connection import connect
from bridge.broker.jobs import JobQueue
from bridge.broker.probe import StoreProbe, writes_of
from bridge.contract import BridgeError, Job, JobKind
from bridge.disk import Disks
from bridge.gateway.idempotency import IdempotencyKeys
from bridge.names import Names
from bridge.service.installer import Installation
from bridge.settings import Retention
from tests.faults.cluster import Cluster, submit, until
from tests.faults.disk import MIB, small_disk

RETENTION = Retention(jobs_s=3600, jobs_bytes=4 * MIB, images_s=3600, images_bytes=8 * MIB)


async def fill_job(queue: JobQueue) -> None:
    parameters: dict[str, Any] = {"prompt": "x" * 20_000}
    await queue.submit(Job(job_id=str(uuid4()), kind=JobKind.GENERATE, mode="m", parameters=parameters, submitted_at=1))


async def fill_image(queue: JobQueue) -> None:
    await queue.store_image(str(uuid4()), 0, "png", os.urandom(300_000))


async def fill_upload(queue: JobQueue) -> None:
    await queue.inputs.put(str(uuid4()), os.urandom(300_000))


async def fill_callback(queue: JobQueue) -> None:
    await queue.nc.jetstream(timeout=1).publish(queue.names.callbacks, b"x" * 20_000)


async def fill_key(queue: JobQueue) -> None:
    await queue.nc.jetstream(timeout=1).publish(f"$KV.{queue.names.idempotency}.x", b"x" * 20_000)


@pytest.mark.parametrize("write", [fill_job, fill_image, fill_upload, fill_callback, fill_key])
async def test_a_write_that_failed_for_want_of_space_is_seen_until_the_server_restarts(
    installation: Installation, tmp_path: Path, write: Callable[[JobQueue], Coroutine[Any, Any, None]]
) -> None:
    with small_disk(tmp_path / "disk", 48) as disk:
        cluster = Cluster(tmp_path / "full", installation, jetstream={"store_dir": str(disk.folder / "nats")})
        try:
            cluster.wait_nats()
            nc = await connect(cluster.nats_url, "test")
            queue = await JobQueue.open(nc, max_pending=8, retention=RETENTION)
            await IdempotencyKeys.open(nc.jetstream(), queue.names.idempotency)

            def probe() -> StoreProbe:
                return StoreProbe(lambda: nc, queue.names, timeout_s=1, disks=Disks((disk.folder,)))

            await probe().check()
            disk.fill()
            with pytest.raises((BridgeError, TimeoutError, nats.errors.Error)):
                async with asyncio.timeout(1.5):
                    await write(queue)
            disk.release()
            with pytest.raises(BridgeError, match=rf"restart nats-server.*free: .* MiB on the disk of {disk.folder}"):
                await probe().check()
            cluster.processes["nats"].restart()
            cluster.wait_nats()
            async with asyncio.timeout(20):
                while True:
                    try:
                        await probe().check()
                        break
                    except BridgeError:  # It reconnects.
                        await asyncio.sleep(0.05)
            await nc.close()
        finally:
            cluster.close()


async def test_nothing_of_a_probe_is_left_where_readers_look(installation: Installation, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "plain", installation)
    try:
        cluster.wait_nats()
        nc = await connect(cluster.nats_url, "test")
        names = Names("probe.test")
        await StoreProbe(lambda: nc, names).check()  # Nobody has made the streams yet.
        queue = await JobQueue.open(nc, max_pending=1, names=names, retention=RETENTION)
        await IdempotencyKeys.open(nc.jetstream(), names.idempotency)
        for _ in range(3):
            await StoreProbe(lambda: nc, names).check()
        js = nc.jetstream()
        counts = {write.stream: (await js.stream_info(write.stream)).state for write in writes_of(names)}
        assert len(counts) == 6
        assert {stream: state.messages for stream, state in counts.items() if state.messages > 1} == {}
        assert counts[names.stream].messages == counts[names.callbacks_stream].messages == 0
        assert counts[names.stream].last_seq > 0
        await fill_job(queue)  # The only place is free.
        with pytest.raises(BridgeError, match="queue is full"):
            await fill_job(queue)
        await StoreProbe(lambda: nc, names).check()  # A full queue is no fault.
        subscription = await queue.subscribe()
        assert len(await subscription.fetch(1, timeout=1)) == 1
        await nc.close()
    finally:
        cluster.close()


async def test_readiness_names_the_disk_and_new_jobs_are_refused_early(
    installation: Installation, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 300) as disk:
        cluster = Cluster(tmp_path / "full", installation, jetstream={"store_dir": str(disk.folder / "nats")})
        cluster.secrets = {"IMAGEGEN_IMAGE_STORE_BYTES": str(16 * MIB), "IMAGEGEN_JOB_STORE_BYTES": str(4 * MIB)}
        try:
            cluster.wait_nats()
            cluster.worker(cluster.stand_in())
            folders = ("--disk-folders", str(disk.folder / "nats"), "--min-free-disk-bytes", str(16 * MIB))
            cluster.gateway("gateway", *folders)
            cluster.gateway("elsewhere")  # It does not see the disk.
            client = cluster.ready()
            cluster.ready("elsewhere")
            disk.fill(leave=8 * MIB)
            answer = requests.get(f"{client.url}/readyz", timeout=30)
            assert answer.status_code == 503
            assert str(disk.folder / "nats") in answer.json()["error"]["message"]
            assert answer.json()["error"]["code"] == "storage_full"
            for path, body in (
                ("/v1/jobs", {"prompt": "x", "mode": "work"}),
                ("/v1/load-model?model_name=alpha", None),
            ):
                refused = requests.post(client.url + path, json=body, timeout=30)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_full"), path
                assert refused.headers["Retry-After"]
            disk.fill()
            began = time.monotonic()
            answer = until(lambda: _refusal(f"{cluster.urls['elsewhere']}/readyz"))
            assert "restart nats-server" in answer["message"]
            assert time.monotonic() - began < 15
            disk.release()
            cluster.processes["nats"].restart()
            cluster.wait_nats()
            assert until(lambda: cluster.ready().job(submit(client, color=3)))
        finally:
            cluster.close()


def _refusal(url: str) -> dict[str, Any] | None:
    answer = requests.get(url, timeout=30)
    return answer.json()["error"] if answer.status_code != 200 else None
