"""The client for programs that are not asynchronous: `AsyncImageGenClient`, run on an event loop of its own.

from bridge.client import ImageGenClient

with ImageGenClient() as client:
    answer = client.generate("a red fox in the snow", model="flux-schnell", seed=7)
    images = client.images(answer)  # bytes, one for each image
    paths = client.save(answer, "images")  # or as files

    job = client.submit("a red fox in the snow")  # or queue it, and look at it later
    for event in client.events(job.job_id):
        print(event.type, event.phase, event.value, event.seconds_left)
    images = client.job_images(job.job_id)
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from bridge.client.async_client import DEFAULT_URL, GENERATE_TIMEOUT_S, READY_TIMEOUT_S, AsyncImageGenClient
from bridge.client.events import RECONNECT_PATIENCE_S
from bridge.client.loop_thread import LoopThread
from bridge.contract import (
    CancelAnswer,
    ImageGenResponse,
    JobEvent,
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

Result = TypeVar("Result")
Item = TypeVar("Item")


class ImageGenClient:
    """A client of one service. Every method that asks the service raises ClientError.

    It may be shared by threads. Interrupting a call (Ctrl-C) ends it; where the call waits for images, the job is
    cancelled.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, token: str | None = None, timeout_s: float = GENERATE_TIMEOUT_S
    ) -> None:
        self._client = AsyncImageGenClient(url, token=token, timeout_s=timeout_s)
        self._opening = threading.Lock()
        self._thread: LoopThread | None = None
        self._end: Callable[[], object] = lambda: None

    @property
    def url(self) -> str:
        """Where the service is."""
        return self._client.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections and end the thread. The next request starts both again."""
        with self._opening:
            self._end()
            self._thread = None

    def generate(
        self, prompt: str, *, on_event: Callable[[JobEvent], object] | None = None, **parameters: Any
    ) -> ImageGenResponse:
        """Generate images from `prompt` and wait for them.

        `parameters` are the other fields of `ImageGenRequest`; None means the model's default. An image or another
        file among them may be given as its bytes or as its path. `on_event` is called, on the calling thread, with
        what happens meanwhile: progress in steps, previews.
        """
        return self._hear(lambda hear: self._client.generate(prompt, on_event=hear, **parameters), on_event)

    def run_mode(
        self, mode: str, *, on_event: Callable[[JobEvent], object] | None = None, **parameters: Any
    ) -> ImageGenResponse:
        """Run a saved graph with the parameters that its schema names (see `mode`); otherwise like `generate`."""
        return self._hear(lambda hear: self._client.run_mode(mode, on_event=hear, **parameters), on_event)

    images = staticmethod(AsyncImageGenClient.images)

    def save(self, answer: ImageGenResponse | JobState, out: Path | str | None = None) -> list[Path]:
        """Write the files of an answer, or of a job that is done, and return their paths.

        `out` is a folder, or a file if it ends in an extension; without it the files go into the current folder.
        Nothing that exists is overwritten.
        """
        return self._wait(self._client.save(answer, out))

    def submit(self, prompt: str | None = None, *, idempotency_key: str | None = None, **parameters: Any) -> JobState:
        """Queue a request and return at once.

        The same `idempotency_key`, or the same `job_id`, gives the same job again and not a second one.
        """
        return self._wait(self._client.submit(prompt, idempotency_key=idempotency_key, **parameters))

    def job(self, job_id: str) -> JobState:
        """The state of a job: its position while it waits, its progress while it runs."""
        return self._wait(self._client.job(job_id))

    def jobs(self, **filters: Any) -> Iterator[JobState]:
        """The known jobs, newest first, read page by page.

        `filters`: status, mode, model, since and until (epoch or ISO 8601), and limit, the size of a page.
        """
        return self._iterate(self._client.jobs(**filters))

    def cancel(self, job_id: str) -> CancelAnswer:
        """Cancel a job that waits or runs. The answer says what that did."""
        return self._wait(self._client.cancel(job_id))

    def job_image(self, job_id: str, index: int = 0) -> bytes:
        """One image of a job that is done, encoded. The error has status 410 if it is no longer kept."""
        return self._wait(self._client.job_image(job_id, index))

    def job_images(self, job_id: str) -> list[bytes]:
        """All images of a job that is done, encoded. The error has status 410 if they are no longer kept."""
        return self._wait(self._client.job_images(job_id))

    def events(
        self, job_id: str, *, previews: bool = False, patience_s: float = RECONNECT_PATIENCE_S
    ) -> Iterator[JobEvent]:
        """What happens to a job, from its present state to its end.

        A broken connection is opened again; the new one starts with the present state. Raises ClientError where the
        job does not exist, and ServiceUnreachable where the service stays away for longer than `patience_s`.
        """
        return self._iterate(self._client.events(job_id, previews=previews, patience_s=patience_s))

    def wait(
        self,
        job_id: str,
        *,
        on_event: Callable[[JobEvent], object] | None = None,
        patience_s: float = RECONNECT_PATIENCE_S,
    ) -> JobState:
        """Wait for the end of a job and return its state, whatever it is. Raises what `events` raises."""
        return self._hear(lambda hear: self._client.wait(job_id, on_event=hear, patience_s=patience_s), on_event)

    def modes(self) -> ModeList:
        """The saved graphs. Those that cannot be used have the reason in `error`."""
        return self._wait(self._client.modes())

    def mode(self, name: str) -> dict[str, Any]:
        """The parameters of a saved graph, as JSON Schema."""
        return self._wait(self._client.mode(name))

    def model_info(self) -> ModelInfoResponse:
        """The models, and the machine that runs them."""
        return self._wait(self._client.model_info())

    def workers(self) -> WorkerList:
        """The workers that reported in the last minute."""
        return self._wait(self._client.workers())

    def load_model(self, name: str) -> LoadModelResponse:
        """Load a model now, and wait until it is loaded."""
        return self._wait(self._client.load_model(name))

    def unload_model(self, name: str | None = None, *, worker_id: str | None = None) -> UnloadAnswer:
        """Free device memory: of one model or of all, on one worker or on all. The answer says what that did."""
        return self._wait(self._client.unload_model(name, worker_id=worker_id))

    def queue(self) -> QueueState:
        """Whether the queue is paused, and how many jobs wait and run."""
        return self._wait(self._client.queue())

    def pause(self, reason: str | None = None) -> QueueState:
        """Pause the queue: running jobs continue, no other job starts. The pause outlives restarts of the service."""
        return self._wait(self._client.pause(reason))

    def resume(self) -> QueueState:
        """Resume the queue after a pause."""
        return self._wait(self._client.resume())

    def cancel_all(self, *, running: bool = False) -> QueueCancelAnswer:
        """Cancel all waiting jobs; with `running`, those that run too. The answer counts the outcomes."""
        return self._wait(self._client.cancel_all(running=running))

    def plan(self, model: str, **query: str | int) -> ModelPlan:
        """Where each part of a model would live: on the worker's machine, or on one with the `vram`, `ram`, … given."""
        return self._wait(self._client.plan(model, **query))

    def check_ready(self) -> None:
        """Raise ClientError unless a request would run now."""
        self._wait(self._client.check_ready())

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until a request would run. Raises the last ClientError after `timeout_s`."""
        self._wait(self._client.wait_ready(timeout_s))

    # -- from the caller's thread to the loop's --------------------------------------------------------------------

    def _loop(self) -> LoopThread:
        with self._opening:
            if self._thread is None:
                self._thread = LoopThread(f"client of {self.url}")
                # Also for a client that nobody closes: when it is collected, or when the program ends.
                self._end = weakref.finalize(self, _stop, self._thread, self._client)
            return self._thread

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self._loop().wait(work)

    def _iterate(self, items: AsyncIterator[Item]) -> Iterator[Item]:
        loop = self._loop()
        try:
            while True:
                item = loop.wait(_next(items))
                if item is None:
                    return
                yield item
        finally:
            loop.start(_close(items))

    def _hear(
        self,
        begin: Callable[[Callable[[JobEvent], object] | None], Coroutine[Any, Any, Result]],
        on_event: Callable[[JobEvent], object] | None,
    ) -> Result:
        """Run work that reports events; `on_event` hears them here, so that it may use this client itself."""
        if on_event is None:
            return self._wait(begin(None))
        heard: queue.SimpleQueue[JobEvent | None] = queue.SimpleQueue()
        with self._loop().running(begin(heard.put)) as outcome:
            outcome.add_done_callback(lambda _: heard.put(None))
            while (event := heard.get()) is not None:
                on_event(event)
            return outcome.result()


async def _next(items: AsyncIterator[Item]) -> Item | None:
    return await anext(items, None)


async def _close(items: AsyncIterator[Item]) -> None:
    if isinstance(items, AsyncGenerator):
        await items.aclose()


def _stop(thread: LoopThread, client: AsyncImageGenClient) -> None:
    thread.stop(client.close())
