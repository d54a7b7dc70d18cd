"""The Python client: typed and synchronous.

from bridge.client import ImageGenClient

with ImageGenClient() as client:
    answer = client.generate("a red fox in the snow", model="flux-schnell", seed=7)
    pictures = client.images(answer)  # bytes, one for each picture
"""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Callable
from socket import SHUT_RDWR
from typing import Any, Self, TypeVar
from uuid import uuid4

import requests
import websocket
from pydantic import BaseModel, ValidationError

from bridge.contract import (
    ErrorBody,
    ErrorEnvelope,
    ImageGenResponse,
    JobEvent,
    JobState,
    LoadModelResponse,
    ModelInfoResponse,
)

DEFAULT_URL = "http://127.0.0.1:8005"
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 30.0

Answer = TypeVar("Answer", bound=BaseModel)


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

        `on_event` is called from another thread with what happens meanwhile: progress in steps, previews. Raises
        ClientError with the service's message. Interrupting the call (Ctrl-C) cancels the job.
        """
        body = {"prompt": prompt, **{name: value for name, value in parameters.items() if value is not None}}
        body.setdefault("job_id", str(uuid4()))
        stream = _EventStream(self, body["job_id"], on_event) if on_event else contextlib.nullcontext()
        with stream:
            try:
                return self._ask(ImageGenResponse, "POST", "/v1/generate-image", json=body, timeout=self.timeout_s)
            except KeyboardInterrupt:
                with contextlib.suppress(ClientError):
                    self.cancel(body["job_id"])
                raise

    @staticmethod
    def images(answer: ImageGenResponse) -> list[bytes]:
        """The encoded pictures of an answer."""
        return [base64.b64decode(image) for image in answer.images]

    def submit(self, prompt: str, **parameters: Any) -> JobState:
        """Queue a request and return at once."""
        body = {"prompt": prompt, **{name: value for name, value in parameters.items() if value is not None}}
        return self._ask(JobState, "POST", "/v1/jobs", json=body)

    def job(self, job_id: str) -> JobState:
        """The state of a job."""
        return self._ask(JobState, "GET", f"/v1/jobs/{job_id}")

    def cancel(self, job_id: str) -> JobState:
        """Cancel a job that waits or runs, and say what became of it."""
        return self._ask(JobState, "DELETE", f"/v1/jobs/{job_id}", timeout=60.0)

    def model_info(self) -> ModelInfoResponse:
        """The models, and the machine that runs them."""
        return self._ask(ModelInfoResponse, "GET", "/v1/model-info")

    def load_model(self, name: str) -> LoadModelResponse:
        """Load a model now, and wait for it."""
        params = {"model_name": name}
        return self._ask(LoadModelResponse, "POST", "/v1/load-model", params=params, timeout=self.timeout_s)

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

    def open_events(self, job_id: str) -> websocket.WebSocket:
        """The event stream of a job; each text frame is a `JobEvent`."""
        url = "ws" + self.url.removeprefix("http") + f"/v1/jobs/{job_id}/events"
        return websocket.create_connection(
            url, timeout=CONNECT_TIMEOUT_S, header=self._headers, suppress_origin=True, http_no_proxy=["*"]
        )

    def _ask(self, model: type[Answer], method: str, path: str, **options: Any) -> Answer:
        return model.model_validate_json(self._request(method, path, **options).content)

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
            body = ErrorEnvelope.model_validate_json(response.content).error
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
            socket = self._client.open_events(self._job_id)
            socket.settimeout(None)
            self._socket = socket
            self._thread.start()
        return self

    def _read(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(OSError, websocket.WebSocketException):
            while frame := self._socket.recv():
                event = JobEvent.model_validate_json(frame)
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
