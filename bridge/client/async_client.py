"""The asynchronous client. Use one on one event loop; `sync_client` wraps it for programs without one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

from bridge.client.errors import ClientError, UnexpectedAnswer
from bridge.client.events import RECONNECT_PATIENCE_S, follow, listening
from bridge.client.saving import write_files
from bridge.client.transport import Transport
from bridge.contract import (
    CancelAnswer,
    ImageGenResponse,
    JobEvent,
    JobPage,
    JobState,
    LoadModelResponse,
    ModelInfoResponse,
    ModeList,
    ModelPlan,
    QueueCancelAnswer,
    QueueState,
    UnloadAnswer,
    WorkerList,
)

DEFAULT_URL = "http://127.0.0.1:8005"
GENERATE_TIMEOUT_S = 900.0
CANCEL_TIMEOUT_S = 60.0
READY_TIMEOUT_S = 120.0
READY_POLL_S = 0.2


class AsyncImageGenClient:
    """A client of one service. Every method that asks the service raises ClientError.

    `url` may be a function: it is called before every request, for a service that may move when it restarts.
    `timeout_s` is how long `generate`, `run_mode` and `load_model` wait for their answer.
    """

    def __init__(
        self,
        url: str | Callable[[], str] = DEFAULT_URL,
        *,
        token: str | None = None,
        timeout_s: float = GENERATE_TIMEOUT_S,
    ) -> None:
        self.timeout_s = timeout_s
        self._transport = Transport(url, token)

    @property
    def url(self) -> str:
        """Where the service is."""
        return self._transport.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. The next request opens new ones."""
        await self._transport.close()

    async def generate(
        self, prompt: str, *, on_event: Callable[[JobEvent], object] | None = None, **parameters: Any
    ) -> ImageGenResponse:
        """Generate images from `prompt` and wait for them.

        `parameters` are the other fields of `ImageGenRequest`; None means the model's default. An image or another
        file among them may be given as its bytes or as its path. `on_event` is called with what happens meanwhile:
        progress in steps, previews. Cancelling the call cancels the job.
        """
        return await self._run("/v1/generate-image", {"prompt": prompt, **parameters}, on_event)

    async def run_mode(
        self, mode: str, *, on_event: Callable[[JobEvent], object] | None = None, **parameters: Any
    ) -> ImageGenResponse:
        """Run a saved graph with the parameters that its schema names (see `mode`); otherwise like `generate`."""
        return await self._run(_mode_path(mode), parameters, on_event)

    async def _run(
        self, path: str, parameters: dict[str, Any], on_event: Callable[[JobEvent], object] | None
    ) -> ImageGenResponse:
        body = await _body(parameters)
        job_id: str = body.setdefault("job_id", str(uuid4()))
        async with listening(self._transport, job_id, on_event):
            try:
                return await self._transport.ask(ImageGenResponse, "POST", path, body=body, timeout_s=self.timeout_s)
            except asyncio.CancelledError:
                with contextlib.suppress(ClientError):
                    await self.cancel(job_id)
                raise

    @staticmethod
    def images(answer: ImageGenResponse) -> list[bytes]:
        """The encoded images of an answer, or its other files; `answer.files` says what each one is."""
        return [base64.b64decode(image) for image in answer.images]

    async def save(self, answer: ImageGenResponse | JobState, out: Path | str | None = None) -> list[Path]:
        """Write the files of an answer, or of a job that is done, and return their paths.

        `out` is a folder, or a file if it ends in an extension; without it the files go into the current folder.
        Nothing that exists is overwritten.
        """
        if isinstance(answer, JobState):
            files, answer = await self.job_images(answer.job_id), ImageGenResponse.of(answer)
        else:
            files = self.images(answer)
        return await asyncio.to_thread(write_files, answer, files, None if out is None else Path(out))

    async def submit(
        self, prompt: str | None = None, *, idempotency_key: str | None = None, **parameters: Any
    ) -> JobState:
        """Queue a request and return at once.

        The same `idempotency_key`, or the same `job_id`, gives the same job again and not a second one.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key is not None else {}
        body = await _body({"prompt": prompt, **parameters})
        return await self._transport.ask(JobState, "POST", "/v1/jobs", body=body, headers=headers)

    async def job(self, job_id: str) -> JobState:
        """The state of a job: its position while it waits, its progress while it runs."""
        return await self._transport.ask(JobState, "GET", _job_path(job_id))

    async def jobs(self, **filters: Any) -> AsyncIterator[JobState]:
        """The known jobs, newest first, read page by page.

        `filters`: status, mode, model, since and until (epoch or ISO 8601), and limit, the size of a page.
        """
        query = dict(filters)
        while True:
            page = await self._transport.ask(JobPage, "GET", "/v1/jobs", query=query)
            for job in page.jobs:
                yield job
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor

    async def cancel(self, job_id: str) -> CancelAnswer:
        """Cancel a job that waits or runs. The answer says what that did."""
        return await self._transport.ask(CancelAnswer, "DELETE", _job_path(job_id), timeout_s=CANCEL_TIMEOUT_S)

    async def job_image(self, job_id: str, index: int = 0) -> bytes:
        """One image of a job that is done, encoded. The error has status 410 if it is no longer kept."""
        return await self._transport.request("GET", f"{_job_path(job_id)}/images/{index}")

    async def job_images(self, job_id: str) -> list[bytes]:
        """All images of a job that is done, encoded. The error has status 410 if they are no longer kept."""
        count = len((await self.job(job_id)).images)
        return [await self.job_image(job_id, index) for index in range(count)]

    def events(
        self, job_id: str, *, previews: bool = False, patience_s: float = RECONNECT_PATIENCE_S
    ) -> AsyncIterator[JobEvent]:
        """What happens to a job, from its present state to its end.

        A broken connection is opened again; the new one starts with the present state. Raises ClientError where the
        job does not exist, and ServiceUnreachable where the service stays away for longer than `patience_s`.
        """
        return follow(self._transport, job_id, previews=previews, patience_s=patience_s)

    async def wait(
        self,
        job_id: str,
        *,
        on_event: Callable[[JobEvent], object] | None = None,
        patience_s: float = RECONNECT_PATIENCE_S,
    ) -> JobState:
        """Wait for the end of a job and return its state, whatever it is. Raises what `events` raises."""
        async for event in self.events(job_id, previews=on_event is not None, patience_s=patience_s):
            if on_event is not None:
                on_event(event)
            if event.final and event.state is not None:
                return event.state
        raise AssertionError("the events end with the job")

    async def modes(self) -> ModeList:
        """The saved graphs. Those that cannot be used have the reason in `error`."""
        return await self._transport.ask(ModeList, "GET", "/v1/modes")

    async def mode(self, name: str) -> dict[str, Any]:
        """The parameters of a saved graph, as JSON Schema."""
        path = _mode_path(name)
        data = await self._transport.request("GET", path)
        try:
            return json.loads(data)
        except ValueError as error:
            raise UnexpectedAnswer(200, self.url, path) from error

    async def model_info(self) -> ModelInfoResponse:
        """The models, and the machine that runs them."""
        return await self._transport.ask(ModelInfoResponse, "GET", "/v1/model-info")

    async def workers(self) -> WorkerList:
        """The workers that reported in the last minute."""
        return await self._transport.ask(WorkerList, "GET", "/v1/workers")

    async def load_model(self, name: str) -> LoadModelResponse:
        """Load a model now, and wait until it is loaded."""
        return await self._transport.ask(
            LoadModelResponse, "POST", "/v1/load-model", query={"model_name": name}, timeout_s=self.timeout_s
        )

    async def unload_model(self, name: str | None = None, *, worker_id: str | None = None) -> UnloadAnswer:
        """Free device memory: of one model or of all, on one worker or on all. The answer says what that did."""
        query = {"model_name": name, "worker_id": worker_id}
        return await self._transport.ask(UnloadAnswer, "POST", "/v1/unload-model", query=query)

    async def queue(self) -> QueueState:
        """Whether the queue is paused, and how many jobs wait and run."""
        return await self._transport.ask(QueueState, "GET", "/v1/queue")

    async def pause(self, reason: str | None = None) -> QueueState:
        """Pause the queue: running jobs continue, no other job starts. The pause outlives restarts of the service."""
        return await self._transport.ask(QueueState, "POST", "/v1/queue/pause", query={"reason": reason})

    async def resume(self) -> QueueState:
        """Resume the queue after a pause."""
        return await self._transport.ask(QueueState, "POST", "/v1/queue/resume")

    async def cancel_all(self, *, running: bool = False) -> QueueCancelAnswer:
        """Cancel all waiting jobs; with `running`, those that run too. The answer counts the outcomes."""
        query = {"running": "true" if running else "false"}
        return await self._transport.ask(
            QueueCancelAnswer, "POST", "/v1/queue/cancel", query=query, timeout_s=CANCEL_TIMEOUT_S
        )

    async def plan(self, model: str, **query: str | int) -> ModelPlan:
        """Where each part of a model would live: on the worker's machine, or on one with the `vram`, `ram`, … given."""
        return await self._transport.ask(ModelPlan, "GET", f"/v1/models/{quote(model, safe='')}/plan", query=query)

    async def check_ready(self) -> None:
        """Raise ClientError unless a request would run now."""
        await self._transport.request("GET", "/readyz")

    async def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until a request would run. Raises the last ClientError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                await self.check_ready()
                return
            except ClientError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(READY_POLL_S)


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _mode_path(mode: str) -> str:
    return f"/v1/modes/{quote(mode, safe='')}"


async def _body(parameters: dict[str, Any]) -> dict[str, Any]:
    """The fields that are given; files as base64."""
    values = {name: value for name, value in parameters.items() if value is not None}
    for name, value in values.items():
        if isinstance(value, Path):
            value = await asyncio.to_thread(value.read_bytes)
        if isinstance(value, bytes):
            values[name] = base64.b64encode(value).decode()
    return values
