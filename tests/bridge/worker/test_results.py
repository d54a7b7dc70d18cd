"""The files of a run on their way into the store, from a ComfyUI of a few routes; and what becomes of lost ends."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from nats.aio.client import Client

from bridge.broker.jobs import JobQueue
from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import JobLost
from bridge.comfyui.history import RunResult
from bridge.comfyui.messages import Event, NodeDone, Started
from bridge.contract import Job, JobKind
from bridge.modes.library import ModeLibrary
from bridge.names import Names
from bridge.stopping import stop
from bridge.worker.job.graph_run import BoundGraph, GraphRun
from bridge.worker.job.held import HeldJob
from bridge.worker.job.record import JobRecord
from bridge.worker.job.results import Results
from bridge.worker.worker import Worker
from tests.bridge.gateway.test_resolve import MODELS
from tests.bridge.house import HandWorker, write_mode

TWO_RESULTS = {
    "9": {"class_type": "NeuroLuxResult", "inputs": {"images": ["8", 0], "name": "before"}},
    "10": {"class_type": "NeuroLuxResult", "inputs": {"images": ["7", 0], "name": "after"}},
}


def new_job(**more: Any) -> Job:
    return Job(job_id=str(uuid.uuid4()), kind=JobKind.GENERATE, mode="paint", parameters={}, submitted_at=1.0, **more)


@pytest.fixture
async def comfyui() -> AsyncIterator[tuple[ComfyUI, list[str]]]:
    """A ComfyUI that is ready, and gives each file its own name as content; the files that were asked for."""
    asked: list[str] = []

    async def view(request: web.Request) -> web.Response:
        asked.append(request.query["filename"])
        return web.Response(body=request.query["filename"].encode())

    async def models(_: web.Request) -> web.Response:
        return web.json_response(json.loads(MODELS.model_dump_json()))

    async def nodes(_: web.Request) -> web.Response:
        return web.json_response({"NeuroLuxResult": {}})

    async def stats(_: web.Request) -> web.Response:
        return web.json_response({"devices": []})

    app = web.Application()
    app.router.add_get("/system_stats", stats)
    app.router.add_get("/view", view)
    app.router.add_get("/neurolux/models", models)
    app.router.add_get("/object_info/NeuroLuxResult", nodes)
    server = TestServer(app)
    await server.start_server()
    async with ComfyUI(f"http://127.0.0.1:{server.port}") as client:
        yield client, asked
    await server.close()


def images(*names: str) -> dict[str, Any]:
    return {"images": [{"filename": name, "subfolder": "", "type": "output"} for name in names]}


def mode_of(tmp_path: Path, nodes: dict[str, Any] | None = None) -> Any:
    write_mode(tmp_path, "paint", nodes)
    return ModeLibrary([tmp_path]).get("paint")


async def test_one_result_node_is_fetched_while_the_run_still_ends(
    queue: JobQueue, comfyui: tuple[ComfyUI, list[str]], tmp_path: Path
) -> None:
    comfy, asked = comfyui
    job = new_job()
    results = Results(comfy, queue, job.job_id, mode_of(tmp_path))
    results.node_done(NodeDone("9", images("a.png", "b.png")))
    async with asyncio.timeout(5):
        while len(asked) < 2:
            await asyncio.sleep(0.01)
    _, stored = await results.collect(RunResult(job.job_id, {"9": images("a.png", "b.png")}))
    assert sorted(asked) == ["a.png", "b.png"]  # Not a second time.
    assert [await queue.image(image) for image in stored] == [b"a.png", b"b.png"]


async def test_the_files_of_several_result_nodes_do_not_meet_on_one_name(
    queue: JobQueue, comfyui: tuple[ComfyUI, list[str]], tmp_path: Path
) -> None:
    comfy, _ = comfyui
    job = new_job()
    mode = mode_of(tmp_path, TWO_RESULTS)
    assert len(mode.results) == 2
    results = Results(comfy, queue, job.job_id, mode)
    outputs = {"9": images("x.png"), "10": images("y.png", "z.png")}
    for node in ("10", "9"):  # ComfyUI ends them in an order of its own.
        results.node_done(NodeDone(node, outputs[node]))
    _, stored = await results.collect(RunResult(job.job_id, outputs))
    by_result = {(image.result, (await queue.image(image)).decode()) for image in stored}
    assert by_result == {("before", "x.png"), ("after", "y.png"), ("after", "z.png")}
    assert len({image.name for image in stored}) == 3


class Losing:
    """A ComfyUI that starts a run and dies within a moment, so many times."""

    def __init__(self, times: int) -> None:
        self._times = times
        self.connected = True

    async def run(
        self, graph: Any, *, prompt_id: str, workflow: Any, on_event: Callable[[Event], None], outputs: Any
    ) -> RunResult:
        on_event(Started())
        if self._times:
            self._times -= 1
            raise JobLost(prompt_id, disconnected=True)
        return RunResult(prompt_id, {})


async def test_a_run_that_is_lost_within_a_moment_counts_as_an_attempt(queue: JobQueue) -> None:
    job = new_job()
    await queue.submit(job)
    worker = HandWorker(queue)
    held = HeldJob(await worker.take(), cast(Any, None))
    held.prepare()
    held.submit()
    record = await JobRecord.open(queue, job, "w")
    comfy = cast(ComfyUI, Losing(2))
    run = GraphRun(comfy, queue, held, record, BoundGraph({}), None, watched=lambda: False, stall_s=0.0)
    assert (await run.run()).prompt_id == job.job_id
    assert (await queue.state(job.job_id)).attempts == 2


async def test_the_webhook_of_a_job_whose_worker_died_before_it_was_queued_is_queued_by_the_next(
    nc: Client, queue: JobQueue, comfyui: tuple[ComfyUI, list[str]], tmp_path: Path
) -> None:
    """The first worker wrote the end and died: the job is delivered again, although it is done."""
    comfy, _ = comfyui
    job = new_job(callback_url="https://example.com/hook")
    await queue.submit(job)
    callbacks = await nc.subscribe(Names().callbacks)
    first = HandWorker(queue)
    await first.take()
    await first.die_after_the_end(job.job_id)
    worker = Worker(queue, comfy, ModeLibrary([tmp_path]), "second")
    serving = asyncio.create_task(worker.run())
    try:
        assert (await callbacks.next_msg(timeout=20)).data.decode() == job.job_id
    finally:
        await stop([serving])
    assert (await queue.state(job.job_id)).worker is None
