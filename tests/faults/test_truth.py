"""What is told of a job is what happens to it: real ComfyUI, real processes."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import requests
from nats.aio.client import Client
from nats.aio.msg import Msg
from PIL import Image

from bridge.broker.connection import connect, subscribed
from bridge.broker.jobs import JobQueue
from bridge.client import ImageGenClient
from bridge.comfyui.client import ComfyUI
from bridge.contract import Job, JobEvent, JobKind, JobStatus
from bridge.gateway.cancellation import cancel
from bridge.modes.library import SHIPPED_WORKFLOWS, ModeLibrary
from bridge.names import Names
from bridge.settings import Retention
from bridge.worker.worker import Worker
from tests.faults.cluster import MODE, Cluster, ended, make_image, submit

_colors = itertools.count(1)


@pytest.fixture
async def nc(cluster: Cluster, client: ImageGenClient) -> AsyncIterator[Client]:
    connection = await connect(cluster.nats_url, "test")
    yield connection
    await connection.close()


async def until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


class Heard:
    """The events of every job from now on. Jobs that earlier tests left behind may still end."""

    def __init__(self) -> None:
        self._events: list[JobEvent] = []

    @classmethod
    async def of(cls, nc: Client) -> Heard:
        heard = cls()

        async def on_event(msg: Msg) -> None:
            heard._events.append(JobEvent.model_validate_json(msg.data))

        await nc.subscribe(f"{Names().events}.*", cb=on_event)
        await subscribed(nc)
        return heard

    async def whole(self, job_id: str) -> list[JobEvent]:
        """Those of one job, once it has ended."""
        await until(lambda: any(event.final for event in self._events if event.job_id == job_id))
        return [event for event in self._events if event.job_id == job_id]


async def test_downloads_loading_and_steps_are_told_with_bytes_and_seconds_left(
    nc: Client, client: ImageGenClient
) -> None:
    heard = await Heard.of(nc)
    began = time.monotonic()
    events = await heard.whole(submit(client, steps=15, color=next(_colors), fault="download"))
    took = time.monotonic() - began
    told = [event for event in events if event.type == "progress"]
    download = next(event for event in told if event.phase == "download")
    assert (download.done_bytes, download.total_bytes, download.bytes_per_second) == (500, 1000, 250.0)
    assert (download.seconds_left, download.node) == (2.0, "Work")
    load = next(event for event in told if event.phase == "load")
    assert (load.value, load.maximum, load.done_bytes, load.total_bytes) == (10, 40, 10, 40)
    steps = [event for event in told if event.phase == "Work"]
    assert steps[-1].value == steps[-1].maximum == 15
    assert steps[-1].seconds_left == 0
    # Which of the steps in between are told depends on the machine; none of them took longer than all together.
    between = [(event.value, event.seconds_left) for event in steps[:-1] if event.value and event.seconds_left]
    assert between
    assert all(left <= (15 - value) * took for value, left in between)


async def test_a_run_that_is_over_at_once_is_told_whole_and_in_order(nc: Client, client: ImageGenClient) -> None:
    heard = await Heard.of(nc)
    events = await heard.whole(submit(client, steps=0, color=next(_colors)))
    assert [event.type for event in events] == ["started", "done"]


async def test_previews_are_sent_only_while_somebody_asks_for_them(nc: Client, client: ImageGenClient) -> None:
    heard = await Heard.of(nc)
    unwatched = submit(client, steps=8, color=next(_colors))
    assert not [event for event in await heard.whole(unwatched) if event.type == "preview"]
    watched = submit(client, steps=15, color=next(_colors))
    await nc.publish(f"{Names().watch}.{watched}")
    previews = [event for event in await heard.whole(watched) if event.type == "preview"]
    assert 2 <= len(previews) <= 9  # one a quarter of a second, not one a step
    assert previews[0].image_b64
    assert Image.open(io.BytesIO(base64.b64decode(previews[0].image_b64))).format == "JPEG"


def test_a_job_that_comes_wholly_from_the_cache_has_its_image(client: ImageGenClient) -> None:
    color = next(_colors)
    first, second = (submit(client, steps=3, color=color) for _ in range(2))
    assert [ended(client, job_id).status for job_id in (first, second)] == ["done", "done"]
    assert make_image(client, first) == make_image(client, second)


def test_a_full_disk_is_the_cause_that_the_caller_reads(client: ImageGenClient) -> None:
    state = ended(client, submit(client, color=next(_colors), fault="disk full"))
    assert state.status == "failed"
    assert state.error
    assert state.error.code == "storage_full"
    assert "the disk of ComfyUI is full, node 6 (Work) could not write" in state.error.message


def test_a_failing_node_is_the_cause_that_the_caller_reads(client: ImageGenClient) -> None:
    state = ended(client, submit(client, color=next(_colors), fault="fail"))
    assert state.error
    assert (state.status, state.error.code) == ("failed", "node_failed")
    assert state.error.message == "node 6 (Work) failed: ValueError: no luck today"


@asynccontextmanager
async def own_worker(cluster: Cluster, queue: JobQueue) -> AsyncIterator[None]:
    """A worker in this process, on the cluster's ComfyUI."""
    async with ComfyUI(cluster.urls["comfyui"]) as comfy:
        modes = ModeLibrary([SHIPPED_WORKFLOWS, cluster.folder / "workflows"])
        worker = asyncio.create_task(Worker(queue, comfy, modes, "own").run())
        try:
            yield
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)


def work(submitted_at: float, **parameters: object) -> Job:
    given = {"prompt": "x", "steps": 10, "color": next(_colors), "fault": "", "model": "alpha", **parameters}
    return Job.model_validate(
        {
            "job_id": str(uuid4()),
            "kind": JobKind.GENERATE,
            "mode": MODE,
            "model": "alpha",
            "parameters": given,
            "submitted_at": submitted_at,
        }
    )


async def test_a_job_that_was_cancelled_a_moment_ago_is_not_drawn(cluster: Cluster, nc: Client) -> None:
    """The worker reads the state of a job before it starts, however young the job is."""
    small = Retention(jobs_bytes=2**24, images_bytes=2**25)  # beside those of the cluster on one server
    queue = await JobQueue.open(nc, max_pending=4, names=Names("young"), retention=small)
    job = work(time.time() + 0.2, steps=50)
    await queue.submit(job)
    assert (await cancel(queue, job.job_id)).outcome == "dequeued"
    async with own_worker(cluster, queue), asyncio.timeout(30):
        while (await nc.jetstream().stream_info(queue.names.stream)).state.messages:
            await asyncio.sleep(0.02)
    assert (await queue.state(job.job_id)).status is JobStatus.CANCELLED
    history = requests.get(f"{cluster.urls['comfyui']}/history/{job.job_id}", timeout=10).json()
    assert "execution_success" not in str(history)


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0], ids=["back", "ahead"])
async def test_a_clock_that_is_set_while_a_job_runs_changes_nothing(
    cluster: Cluster, nc: Client, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    """The worker's own clock jumps by a day; a worker in this process, with a queue of its own."""
    names = Names(f"clock.{'ahead' if jump_s > 0 else 'back'}")
    small = Retention(jobs_bytes=2**24, images_bytes=2**25)  # beside those of the cluster on one server
    queue = await JobQueue.open(nc, max_pending=4, names=names, retention=small)
    job = work(time.time())
    async with own_worker(cluster, queue):
        await queue.submit(job)
        async with asyncio.timeout(30):
            while (await queue.state(job.job_id)).status is not JobStatus.RUNNING:
                await asyncio.sleep(0.02)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + jump_s)
        async with asyncio.timeout(30):
            while not (state := await queue.state(job.job_id)).status.final:
                await asyncio.sleep(0.02)
    assert state.status is JobStatus.DONE
    assert 500 < state.generation_time_ms < 30_000
    assert 0 <= state.queue_time_ms < 30_000
