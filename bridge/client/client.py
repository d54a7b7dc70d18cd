"""The Python client: typed and synchronous.

from bridge.client import ImageGenClient

with ImageGenClient() as client:
    answer = client.generate("a red fox in the snow", model="flux-schnell", seed=7)
    images = client.images(answer)  # bytes, one for each image
    paths = client.save(answer, "images")  # or as files

    job = client.submit("a red fox in the snow")  # or queue it, and look at it when it suits
    for event in client.events(job.job_id):
        print(event.type, event.phase, event.value, event.seconds_left)
    images = client.job_images(job.job_id)
"""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

import requests
import websocket
from pydantic import ValidationError

from bridge.client.saving import paths_for
from bridge.contract import (
    Answer,
    CancelAnswer,
    ErrorBody,
    ErrorEnvelope,
    ImageGenResponse,
    JobEvent,
    JobPage,
    JobState,
    LoadModelResponse,
    ModelInfoResponse,
    ModeList,
    ModelPlan,
    WorkerList,
    read_answer,
)

DEFAULT_URL = "http://127.0.0.1:8005"
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 30.0
RECONNECT_S = 0.5
RECONNECT_PATIENCE_S = 60.0
"""How long events wait for a service that went away; the job goes on meanwhile, or waits too."""


class ClientError(Exception):
    """The service answered with an error, or not at all (`status` 0). `error` is the envelope's body."""

    def __init__(self, status: int, error: ErrorBody, retry_after_s: float | None = None) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error
        self.retry_after_s = retry_after_s


class ServiceUnreachable(ClientError):
    """Nothing answers at the URL."""

    def __init__(self, url: str) -> None:
        message = f"no image generation service answers at {url}; start one with 'imagegen up'"
        super().__init__(0, ErrorBody(code="unreachable", message=message))


class ImageGenClient:
    """A connection to one service. Use it from one thread at a time; `cancel` may be called from any."""

    def __init__(self, url: str = DEFAULT_URL, *, token: str | None = None, timeout_s: float = 900.0) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = requests.Session()
        # A proxy from the environment would take requests for this machine away from it.
        self._session.trust_env = False
        self._session.headers.update(self._headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def generate(
        self, prompt: str, *, on_event: Callable[[JobEvent], None] | None = None, **parameters: Any
    ) -> ImageGenResponse:
        """Draw `prompt`. `parameters` are the other fields of `ImageGenRequest`; None means the model's default.

        An image or another file among them may be its bytes or its path. `on_event` is called from another thread
        with what happens meanwhile: progress in steps, previews. Raises ClientError with the service's message.
        Interrupting the call (Ctrl-C) cancels the job.
        """
        return self._draw("/v1/generate-image", {"prompt": prompt, **parameters}, on_event)

    def run_mode(
        self, mode: str, *, on_event: Callable[[JobEvent], None] | None = None, **parameters: Any
    ) -> ImageGenResponse:
        """Run a saved graph with the values that its schema (`mode`) names. As `generate` otherwise."""
        return self._draw(f"/v1/modes/{quote(mode, safe='')}", parameters, on_event)

    def _draw(
        self, path: str, parameters: dict[str, Any], on_event: Callable[[JobEvent], None] | None
    ) -> ImageGenResponse:
        body = _body(parameters)
        body.setdefault("job_id", str(uuid4()))
        stream = _EventStream(self, body["job_id"], on_event) if on_event else contextlib.nullcontext()
        with stream:
            try:
                return self._ask(ImageGenResponse, "POST", path, json=body, timeout=self.timeout_s)
            except KeyboardInterrupt:
                with contextlib.suppress(ClientError):
                    self.cancel(body["job_id"])
                raise

    @staticmethod
    def images(answer: ImageGenResponse) -> list[bytes]:
        """The encoded images of an answer, or its other files; `answer.files` says what each is."""
        return [base64.b64decode(image) for image in answer.images]

    def save(self, answer: ImageGenResponse | JobState, out: Path | str | None = None) -> list[Path]:
        """Write the files of an answer, or of a job that is done, each under its own extension; returns the paths.

        `out` is a folder, or a file where it ends in an extension. Nothing that exists is overwritten.
        """
        if isinstance(answer, JobState):
            files, answer = self.job_images(answer.job_id), ImageGenResponse.of(answer)
        else:
            files = self.images(answer)
        paths = paths_for(answer, None if out is None else Path(out))
        for path, data in zip(paths, files, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return paths

    def submit(self, prompt: str | None = None, *, idempotency_key: str | None = None, **parameters: Any) -> JobState:
        """Queue a request and return at once. The same `idempotency_key` again is the same job, not a second one."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key is not None else {}
        body = _body({"prompt": prompt, **parameters})
        return self._ask(JobState, "POST", "/v1/jobs", json=body, headers=headers)

    def job(self, job_id: str) -> JobState:
        """The state of a job: its position while it waits, its progress while it runs."""
        return self._ask(JobState, "GET", f"/v1/jobs/{job_id}")

    def jobs(self, **filters: Any) -> Iterator[JobState]:
        """The jobs that are known, newest first. `filters`: status, mode, model, since, until (epoch or ISO 8601)."""
        query = {name: value for name, value in filters.items() if value is not None}
        while True:
            page = self._ask(JobPage, "GET", "/v1/jobs", params=query)
            yield from page.jobs
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor

    def cancel(self, job_id: str) -> CancelAnswer:
        """Cancel a job that waits or runs, and say what that did."""
        return self._ask(CancelAnswer, "DELETE", f"/v1/jobs/{job_id}", timeout=60.0)

    def job_images(self, job_id: str) -> list[bytes]:
        """The encoded images of a job that is done. Raises ClientError (410) where they are no longer kept."""
        count = len(self.job(job_id).images)
        return [self._request("GET", f"/v1/jobs/{job_id}/images/{index}").content for index in range(count)]

    def events(self, job_id: str, *, previews: bool = False) -> Iterator[JobEvent]:
        """What happens to a job, from its present state to its end.

        A connection that breaks is made again, and tells the present state first. Raises ClientError for a job that
        there is not, and ServiceUnreachable when the service stays away.
        """
        deadline = time.monotonic() + RECONNECT_PATIENCE_S
        while True:
            with contextlib.suppress(OSError, websocket.WebSocketException):
                socket = self.open_events(job_id, previews=previews)
                try:
                    socket.settimeout(None)
                    while frame := socket.recv():
                        event = read_answer(JobEvent, frame)
                        yield event
                        if event.final:
                            return
                        deadline = time.monotonic() + RECONNECT_PATIENCE_S
                finally:
                    socket.close()
            try:
                self.job(job_id)
            except ClientError as error:
                if error.status not in (0, 503) or time.monotonic() > deadline:
                    raise
            time.sleep(RECONNECT_S)

    def wait(self, job_id: str, *, on_event: Callable[[JobEvent], None] | None = None) -> JobState:
        """Wait for the end of a job and return its state, whatever it is. Raises what `events` raises."""
        for event in self.events(job_id, previews=on_event is not None):
            if on_event is not None:
                on_event(event)
            if event.final and event.state is not None:
                return event.state
        raise AssertionError("the events end with the job")

    def modes(self) -> ModeList:
        """The saved graphs; those that cannot be used with the reason."""
        return self._ask(ModeList, "GET", "/v1/modes")

    def mode(self, name: str) -> dict[str, Any]:
        """What a saved graph takes, as JSON Schema."""
        return self._request("GET", f"/v1/modes/{quote(name, safe='')}").json()

    def model_info(self) -> ModelInfoResponse:
        """The models, and the machine that runs them."""
        return self._ask(ModelInfoResponse, "GET", "/v1/model-info")

    def workers(self) -> WorkerList:
        """The workers that were heard of in the last minute."""
        return self._ask(WorkerList, "GET", "/v1/workers")

    def load_model(self, name: str) -> LoadModelResponse:
        """Load a model now, and wait for it."""
        params = {"model_name": name}
        return self._ask(LoadModelResponse, "POST", "/v1/load-model", params=params, timeout=self.timeout_s)

    def plan(self, model: str, **query: str | int) -> ModelPlan:
        """How a model would lie in memory: on the worker's machine, or with `vram`, `ram` and so on, on another."""
        return self._ask(ModelPlan, "GET", f"/v1/models/{quote(model, safe='')}/plan", params=query)

    def wait_ready(self, timeout_s: float = 120.0) -> None:
        """Wait until a request would be run. Raises the last ClientError when `timeout_s` is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._request("GET", "/readyz")
                return
            except ClientError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def open_events(self, job_id: str, *, previews: bool = False) -> websocket.WebSocket:
        """The event stream of a job; each text frame is a `JobEvent`."""
        query = "?previews=true" if previews else ""
        url = "ws" + self.url.removeprefix("http") + f"/v1/jobs/{job_id}/events{query}"
        return websocket.create_connection(
            url, timeout=CONNECT_TIMEOUT_S, header=self._headers, suppress_origin=True, http_no_proxy=["*"]
        )

    def _ask(self, model: type[Answer], method: str, path: str, **options: Any) -> Answer:
        return read_answer(model, self._request(method, path, **options).content)

    def _request(
        self, method: str, path: str, *, timeout: float = REQUEST_TIMEOUT_S, **options: Any
    ) -> requests.Response:
        try:
            response = self._session.request(method, self.url + path, timeout=(CONNECT_TIMEOUT_S, timeout), **options)
        except requests.Timeout as error:
            body = ErrorBody(code="timeout", message=f"{self.url} did not answer {path} within {timeout:g} s")
            raise ClientError(0, body) from error
        except requests.RequestException as error:
            raise ServiceUnreachable(self.url) from error
        if response.ok:
            return response
        try:
            body = read_answer(ErrorEnvelope, response.content).error
        except ValidationError:
            body = ErrorBody(code="unexpected", message=f"{self.url} answered {response.status_code} to {path}")
        retry_after = response.headers.get("Retry-After")
        raise ClientError(response.status_code, body, float(retry_after) if retry_after else None)


class _EventStream:
    """Reads a job's events in a thread of its own, from before the job exists until it has ended."""

    def __init__(self, client: ImageGenClient, job_id: str, on_event: Callable[[JobEvent], None]) -> None:
        self._client = client
        self._job_id = job_id
        self._on_event = on_event
        self._socket: websocket.WebSocket | None = None
        self._thread = threading.Thread(target=self._read, name=f"events of {job_id}", daemon=True)

    def __enter__(self) -> Self:
        # Events are an extra: a service that refuses them will say why to the request itself.
        with contextlib.suppress(OSError, websocket.WebSocketException):
            socket = self._client.open_events(self._job_id, previews=True)
            socket.settimeout(None)
            self._socket = socket
            self._thread.start()
        return self

    def _read(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(OSError, websocket.WebSocketException):
            while frame := self._socket.recv():
                event = read_answer(JobEvent, frame)
                self._on_event(event)
                if event.final:
                    return

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if self._socket is None:
            return
        if failure is None:
            self._thread.join(timeout=2.0)  # The final event is on its way.
        # Closing alone would leave the reader waiting: another thread's recv wakes only when the connection is shut.
        if self._socket.sock:
            with contextlib.suppress(OSError):
                self._socket.sock.shutdown(SHUT_RDWR)
        self._thread.join(timeout=2.0)
        with contextlib.suppress(OSError, websocket.WebSocketException):
            self._socket.shutdown()


def _body(parameters: dict[str, Any]) -> dict[str, Any]:
    """The fields that are given; images as base64."""
    values = {name: value for name, value in parameters.items() if value is not None}
    for name, value in values.items():
        if isinstance(value, Path):
            value = value.read_bytes()
        if isinstance(value, bytes):
            values[name] = base64.b64encode(value).decode()
    return values
