"""Controls on a real ComfyUI: freeing its memory, pausing its queue, which job comes first."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import nats
import pytest
import requests

from bridge.broker.connection import connect
from bridge.broker.jobs import JobQueue
from bridge.client import AsyncImageGenClient, ImageGenClient
from bridge.comfyui.client import ComfyUI
from bridge.contract import JobStatus, UnloadAnswer, UnloadOutcome
from bridge.names import Names
from bridge.settings import Retention
from bridge.worker.report import WorkerReport
from bridge.worker.unloading import Unloading
from tests.service.conftest import DEFAULT_MODEL, Service

SMALL: dict[str, Any] = {"width": 128, "height": 96, "num_inference_steps": 2}
LONG: dict[str, Any] = {"width": 512, "height": 512, "num_inference_steps": 50}
OTHER = "tiny-sdxl"
seeds = itertools.count(4_000)
Imagegen = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def client(service: Service) -> Iterator[ImageGenClient]:
    """A client of a service whose queue runs, and runs afterwards."""
    with ImageGenClient(service.url) as opened:
        opened.resume()
        yield opened
        opened.resume()


def loaded(client: ImageGenClient) -> set[str]:
    return {model.name for model in client.model_info().models if model.loaded}


def until(true: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_all_models_leave_memory_and_come_back_with_the_next_job(client: ImageGenClient) -> None:
    client.generate("a cat", seed=next(seeds), **SMALL)
    client.generate("a cat", seed=next(seeds), model=OTHER, **SMALL)
    assert {DEFAULT_MODEL, OTHER} <= loaded(client)
    answer = client.unload_model()
    [worker] = answer.workers
    assert (answer.model, worker.outcome) == (None, UnloadOutcome.UNLOADED)
    assert {DEFAULT_MODEL, OTHER} <= set(worker.models)
    assert worker.freed_bytes > 0
    assert loaded(client) == set()
    until(lambda: not client.workers().workers[0].loaded_models)  # The heartbeat is true again.
    assert client.unload_model().workers[0].outcome == UnloadOutcome.NOT_LOADED
    client.generate("a cat", seed=next(seeds), **SMALL)
    assert loaded(client) == {DEFAULT_MODEL}


def test_one_model_leaves_memory_and_the_other_stays(client: ImageGenClient, imagegen: Imagegen) -> None:
    client.generate("a cat", seed=next(seeds), **SMALL)
    client.generate("a cat", seed=next(seeds), model=OTHER, **SMALL)
    run = imagegen("unload", OTHER)
    assert run.returncode == 0, run.stderr
    assert "unloaded" in run.stdout
    assert OTHER in run.stdout
    assert loaded(client) == {DEFAULT_MODEL}
    client.generate("a cat", seed=next(seeds), model=OTHER, **SMALL)


def test_a_model_at_work_is_left_alone_and_all_are_freed_after_the_job(client: ImageGenClient) -> None:
    job = client.submit("a cat", seed=next(seeds), **LONG)
    until(lambda: client.job(job.job_id).status is JobStatus.RUNNING)
    [one] = client.unload_model(DEFAULT_MODEL).workers
    assert (one.outcome, one.models) == (UnloadOutcome.BUSY, [])
    assert "try again" in one.message
    more = [client.submit("a cat", seed=next(seeds), **LONG) for _ in range(2)]
    [every] = client.unload_model().workers
    assert every.outcome in (UnloadOutcome.DEFERRED, UnloadOutcome.UNLOADED)
    client.cancel_all(running=True)
    for each in (job, *more):
        assert client.wait(each.job_id).status in (JobStatus.CANCELLED, JobStatus.DONE)
    until(lambda: not loaded(client))
    until(lambda: not client.workers().workers[0].loaded_models)


async def test_over_nats_memory_is_freed_too(client: ImageGenClient, service: Service) -> None:
    await asyncio.to_thread(client.load_model, DEFAULT_MODEL)
    nc = await nats.connect(service.nats_url)
    try:
        reply = await nc.request("ai.vision.imagegen.unload", json.dumps({"model_name": DEFAULT_MODEL}).encode(), 30)
    finally:
        await nc.close()
    [worker] = UnloadAnswer.model_validate_json(reply.data).workers
    assert (worker.outcome, worker.models) == (UnloadOutcome.UNLOADED, [DEFAULT_MODEL])


async def test_an_idle_worker_frees_its_memory(client: ImageGenClient, service: Service) -> None:
    await asyncio.to_thread(client.load_model, DEFAULT_MODEL)
    nc = await connect(service.nats_url, "test")
    small = Retention(jobs_bytes=2**24, images_bytes=2**25)
    running: list[str] = ["a job"]
    async with ComfyUI(service.comfyui_url) as comfy:
        queue = await JobQueue.open(nc, max_pending=1, names=Names("idle"), retention=small)
        report = WorkerReport(queue, comfy, "own")
        await report.refresh()
        unloading = Unloading(comfy, report, "own", running=lambda: running, told=lambda: None, idle_s=0.4)
        task = asyncio.create_task(unloading.run())
        await asyncio.sleep(1)
        assert await asyncio.to_thread(loaded, client) == {DEFAULT_MODEL}  # A job runs.
        running.clear()
        await asyncio.to_thread(until, lambda: not loaded(client))
        async with asyncio.timeout(10):
            while report.loaded:
                await asyncio.sleep(0.05)
        task.cancel()
    await nc.close()


async def test_during_a_pause_no_job_starts_and_what_runs_ends(service: Service, client: ImageGenClient) -> None:
    async with AsyncImageGenClient(service.url) as asked:
        running = await asked.submit("a cat", seed=next(seeds), width=256, height=256, num_inference_steps=30)
        while (await asked.job(running.job_id)).status is JobStatus.QUEUED:
            await asyncio.sleep(0.02)
        behind = await asked.submit("a cat", seed=next(seeds), **SMALL)
        paused = await asked.pause("a new card")
        assert (paused.paused, paused.reason) == (True, "a new card")
        assert (await asked.wait(running.job_id)).status is JobStatus.DONE
        waiting = {
            priority: await asked.submit("a cat", seed=next(seeds), priority=priority, **SMALL)
            for priority in ("low", "normal", "high")
        }
        await asyncio.sleep(1)
        states = [await asked.job(job.job_id) for job in (behind, *waiting.values())]
        assert [(state.status, state.paused) for state in states] == [(JobStatus.QUEUED, True)] * 4
        ready = await asyncio.to_thread(requests.get, service.url + "/readyz", timeout=30)
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "paused")
        assert not (await asked.resume()).paused
        ended = {name: await asked.wait(job.job_id) for name, job in {**waiting, "behind": behind}.items()}
        assert {state.status for state in ended.values()} == {JobStatus.DONE}
        started = {name: state.started_at or 0 for name, state in ended.items()}
        assert started["high"] < started["low"]
        assert started["normal"] < started["low"]


def test_the_commands_pause_resume_and_cancel_all(client: ImageGenClient, imagegen: Imagegen) -> None:
    run = imagegen("pause", "--reason", "night")
    assert "night" in run.stdout, run.stderr
    assert run.stdout.startswith("paused since")
    job = client.submit("a cat", priority="high", seed=next(seeds), **SMALL)
    assert "priority high, the queue is paused" in imagegen("jobs", "--status", "queued").stdout
    assert json.loads(imagegen("queue", "--json").stdout)["waiting_by_priority"]["high"] == 1
    assert imagegen("cancel", "--all").stdout == "1 dequeued\n"
    assert client.job(job.job_id).status is JobStatus.CANCELLED
    assert imagegen("cancel", "--all").stdout == "no job waits\n"
    assert imagegen("resume").stdout.startswith("running; 0 jobs wait")
    for wrong in (("cancel",), ("cancel", "x", "--all"), ("cancel", "x", "--running")):
        run = imagegen(*wrong)
        assert (run.returncode, run.stderr) == (1, "imagegen: name one job, or cancel all with --all (and --running)\n")
