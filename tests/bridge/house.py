"""A gateway on a real nats-server, and a worker that the test leads by the hand: it takes jobs, says what happens."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestClient, TestServer
from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge.api.app import make_app
from bridge.broker.connection import subscribed
from bridge.broker.jobs import JobQueue, StoredState
from bridge.broker.priorities import JobSubscription
from bridge.contract import ErrorBody, Job, JobEvent, JobState, JobStatus, ModelInfoResponse
from bridge.names import Names
from bridge.settings import Settings
from tests.bridge.gateway.test_resolve import MODELS
from tests.bridge.graphs import graph, workflow, write_graph

BODY: dict[str, Any] = {"prompt": "a cat", "mode": "paint"}
"""A request to the small graph, which names no model."""


def write_mode(folder: Path, name: str, nodes: dict[str, Any] | None = None) -> Path:
    """Save the small graph as a mode, with other or more nodes."""
    path = folder / f"{name}.json"
    write_graph(path, {**graph(), **(nodes or {})}, workflow())
    return path


@dataclass
class HandWorker:
    """The queue from a worker's side."""

    queue: JobQueue
    _subscription: JobSubscription | None = None
    _messages: dict[str, Msg] = field(default_factory=dict)

    async def take(self) -> Job:
        """The next job, as a worker gets it."""
        subscription = self._subscription = self._subscription or await self.queue.subscribe()
        [msg] = await subscription.fetch(1, timeout=5)
        job = Job.model_validate_json(msg.data)
        self._messages[job.job_id] = msg
        await self.queue.begin(job)
        return job

    async def move(self, job_id: str, status: JobStatus, **changes: Any) -> JobState:
        """Write the next state of a job."""
        stored = await self.queue.stored_state(job_id)
        state = stored.state.moved(status, **changes)
        assert await self.queue.advance(StoredState(state, stored.revision))
        return state

    async def start(self, job_id: str) -> None:
        await self.move(job_id, JobStatus.RUNNING, started_at=time.time())
        await self.queue.publish(JobEvent(type="started", job_id=job_id))

    async def step(self, job_id: str, value: int, maximum: int) -> None:
        event = JobEvent(
            type="progress", job_id=job_id, phase="sample", value=value, maximum=maximum, seconds_left=maximum - value
        )
        await self.queue.publish(event)

    async def finish(self, job_id: str, contents: Sequence[bytes] = (), seconds: float = 1.0) -> JobState:
        """The job is done, after so many seconds."""
        images = [await self.queue.store_image(job_id, index, "png", data) for index, data in enumerate(contents)]
        now = time.time()
        changes = {"images": images, "image_format": "png", "started_at": now - seconds, "finished_at": now}
        return await self._end(job_id, JobStatus.DONE, **changes)

    async def die_after_the_end(self, job_id: str) -> None:
        """The job is done, and this worker says nothing more. The delivery is repeated at once, not after 15 s."""
        await self.move(job_id, JobStatus.DONE, started_at=time.time(), finished_at=time.time())
        await self._messages.pop(job_id).nak()

    async def fail(self, job_id: str, code: str, message: str) -> JobState:
        return await self._end(job_id, JobStatus.FAILED, error=ErrorBody(code=code, message=message))

    async def cancelled(self, job_id: str) -> JobState:
        return await self._end(job_id, JobStatus.CANCELLED)

    async def _end(self, job_id: str, status: JobStatus, **changes: Any) -> JobState:
        state = await self.move(job_id, status, **changes)
        await self.queue.announce(state)
        if (msg := self._messages.pop(job_id, None)) is not None:
            await self.queue.end_callback(Job.model_validate_json(msg.data))
            await msg.ack_sync()
        return state


@dataclass
class House:
    """One installation under a prefix of its own."""

    nc: Client
    nats_url: str
    folder: Path
    models: ModelInfoResponse = MODELS
    prefix: str = field(default_factory=lambda: f"test{uuid.uuid4().hex}")
    _opened: list[TestClient] = field(default_factory=list)

    def settings(self, **values: Any) -> Settings:
        small = {"job_store_bytes": 2**24, "image_store_bytes": 2**25}
        return Settings(state_dir=self.folder, nats_prefix=self.prefix, **{**small, **values})

    async def gateway(self, **values: Any) -> TestClient:
        """One more gateway."""
        if not self._opened:
            await self.nc.subscribe(Names(self.prefix).model_info, cb=self._on_model_info)
            await subscribed(self.nc)
        settings = self.settings(**values)
        settings.make_directories()
        client = TestClient(TestServer(make_app(settings, self.nats_url)))
        await client.start_server()
        self._opened.append(client)
        return client

    async def worker(self, **values: Any) -> HandWorker:
        settings = self.settings(**values)
        queue = await JobQueue.open(
            self.nc, max_pending=settings.max_pending, names=settings.names, retention=settings.retention
        )
        return HandWorker(queue)

    async def _on_model_info(self, msg: Msg) -> None:
        await msg.respond(self.models.model_dump_json().encode())

    async def stop(self, gateway: TestClient) -> None:
        self._opened.remove(gateway)
        await gateway.close()

    async def close(self) -> None:
        for gateway in list(self._opened):
            await self.stop(gateway)
        js = self.nc.jetstream()
        slug = self.settings().names.states.removesuffix("-jobs")
        for name in [info.config.name for info in await js.streams_info()]:
            if name and slug.lower() in name.lower():
                await js.delete_stream(name)


async def submit(gateway: TestClient, **more: Any) -> str:
    """Queue a job and return its id."""
    answer = await gateway.post("/v1/jobs", json={**BODY, **more})
    assert answer.status == 202, await answer.text()
    return (await answer.json())["job_id"]
