"""The asyncio client of one ComfyUI server: its routes, and `run`, which follows a graph to its outcome.

Contract: `server.py` of ComfyUI 0.3.75 and later; only routes that both have are used. Requests have no Origin header,
because ComfyUI's cross-origin guard would answer 403.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Container, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

from bridge import tracing
from bridge.comfyui.errors import ComfyUIError, ComfyUIUnavailable, PromptRejected
from bridge.comfyui.history import RunResult
from bridge.comfyui.listener import Listener
from bridge.comfyui.messages import Event, Frame, Poke, Started
from bridge.comfyui.output_folder import OutputFolder
from bridge.comfyui.run import LATE_S, QueueSnapshot, Run
from bridge.comfyui.token import token_headers

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
UNREACHABLE_TIMEOUT_S = 60.0
MAX_JSON_BYTES = 128 * 1024 * 1024
"""/queue repeats every waiting graph; /object_info of a server with many packs is tens of megabytes."""
MAX_IMAGE_BYTES = 256 * 1024 * 1024
QUEUE_SHARE = 10
"""All runs share a queue snapshot for this many times as long as it took to get."""
INSIST_S = 0.3
"""`execute_async` discards an interrupt that arrives while a prompt starts, so it is repeated at this interval."""
INSIST_TIMES = 10


class ComfyUI:
    """One ComfyUI server, e.g. `http://127.0.0.1:8188`. Use as `async with ComfyUI(url) as comfyui:`.

    All runs share one websocket. A run waits `unreachable_timeout_s` for a ComfyUI that stopped answering. `output_dir`
    is ComfyUI's output folder, if this machine can read it: results are then read from there.
    """

    def __init__(
        self,
        base_url: str,
        *,
        output_dir: Path | None = None,
        unreachable_timeout_s: float = UNREACHABLE_TIMEOUT_S,
    ) -> None:
        self.url = base_url.rstrip("/")
        self._output = OutputFolder(output_dir) if output_dir else None
        self.unreachable_timeout_s = unreachable_timeout_s
        self._runs: dict[str, Run] = {}
        self._executing: str | None = None  # the run that frames without a prompt id belong to
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._queue: QueueSnapshot | None = None
        self._queue_good_for_s = 0.0
        self._queue_lock = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._listener: Listener | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._session = aiohttp.ClientSession(timeout=timeout, headers=token_headers())
        scheme = "wss" if self.url.startswith("https:") else "ws"
        socket_url = URL(self.url + "/ws").with_scheme(scheme)
        self._listener = Listener(self._session, socket_url, self._deliver, self._poke_all)
        await self._listener.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._listener is not None:
            await self._listener.close()
        if self._session is not None:
            await self._session.close()

    @property
    def connected(self) -> bool:
        """True while the websocket is open, which proves that ComfyUI runs."""
        return self._listener is not None and self._listener.connected

    @property
    def reconnects(self) -> int:
        """How often the websocket was opened again."""
        return 0 if self._listener is None else max(0, self._listener.connections - 1)

    # -- plain routes ----------------------------------------------------------------------------------------------

    async def get_json(self, path: str) -> Any:
        """GET a path such as `/neurolux/models`; raises ComfyUIError for any status but 200."""
        return await self._json("GET", path)

    async def ask_json(self, path: str, query: Mapping[str, str], accept: Container[int]) -> tuple[int, Any]:
        """GET a path with parameters. Returns the status (200, or one in `accept`) and the JSON of the answer."""
        status, body = await self._request("GET", path, params=dict(query), accept=accept)
        return status, self._decode(body, path)

    async def post_json(self, path: str, body: Mapping[str, Any]) -> Any:
        """POST a JSON object and return the JSON of the answer; raises ComfyUIError for any status but 200."""
        return await self._json("POST", path, json=dict(body))

    async def system_stats(self) -> dict[str, Any]:
        return await self.get_json("/system_stats")

    async def object_info(self) -> dict[str, Any]:
        """Every node class with its inputs, outputs and category."""
        return await self.get_json("/object_info")

    async def free(self, unload_models: bool = True, free_memory: bool = False) -> None:
        """Unload models (and drop cached node outputs with `free_memory`); ComfyUI does it between prompts."""
        await self._request("POST", "/free", json={"unload_models": unload_models, "free_memory": free_memory})

    async def view(self, filename: str, subfolder: str, type: str) -> bytes:  # noqa: A002 - ComfyUI's own name
        """The bytes of an output, input or temp file, named as in node outputs."""
        if type == "output" and self._output is not None:
            data = await self._output.read(subfolder, filename)
            if data is not None:
                return data
        parameters = {"filename": filename, "subfolder": subfolder, "type": type}
        status, body = await self._request("GET", "/view", params=parameters, limit=MAX_IMAGE_BYTES, accept=(404,))
        if status == 404:
            raise ComfyUIError(f"ComfyUI has no file {filename!r} in its {type} folder (subfolder {subfolder!r})")
        return body

    async def upload_image(self, data: bytes, filename: str, subfolder: str = "") -> str:
        """Upload an image to ComfyUI's input folder. Returns its name for image widgets; ComfyUI may change it."""
        form = aiohttp.FormData()
        form.add_field("image", data, filename=filename, content_type="application/octet-stream")
        form.add_field("type", "input")
        form.add_field("subfolder", subfolder)
        record = await self._json("POST", "/upload/image", data=form)
        subfolder = record.get("subfolder") or ""
        return f"{subfolder}/{record['name']}" if subfolder else record["name"]

    # -- runs ------------------------------------------------------------------------------------------------------

    async def run(
        self,
        graph: Mapping[str, Any],
        *,
        prompt_id: str,
        workflow: Mapping[str, Any] | None = None,
        on_event: Callable[[Event], None] | None = None,
        outputs: Sequence[str] = (),
    ) -> RunResult:
        """Queue an API-format graph and wait for its outcome.

        `outputs` are the output nodes to run, with what they need; empty: all.

        `prompt_id` is a lowercase UUID that the caller chooses, so that it can find the run again (newer ComfyUI
        accepts no other form). `workflow`, the UI graph, goes into the metadata of saved images. `on_event` is called
        in order, from this task. Cancelling the task only stops waiting; `cancel` stops the run.

        Raises ComfyUIUnavailable (nothing was queued, or ComfyUI stayed away too long), PromptRejected, NodeFailed,
        Interrupted, JobLost.
        """
        listener = self._open_listener()
        with self._registered(prompt_id, on_event) as run:
            await listener.ready()  # without a websocket the run is polled
            client_id = listener.client_id
            ahead = len(self._runs) - 1
            await self._submit(graph, prompt_id, client_id, workflow, outputs)
            run.submitted(client_id, ahead)
            if run.cancel_requested:
                await self._stop(prompt_id, run)
            return await run.follow(self)

    async def attach(self, prompt_id: str, *, on_event: Callable[[Event], None] | None = None) -> RunResult:
        """Follow a prompt that was sent before, as by a process that died. Its frames go elsewhere, so it is polled.

        Raises what `run` raises, and JobLost if ComfyUI does not know the prompt.
        """
        with self._registered(prompt_id, on_event) as run:
            run.adopted()
            return await run.follow(self)

    async def cancel(self, prompt_id: str) -> bool:
        """Remove this prompt from the queue, or interrupt it if it runs. Other prompts are not affected.

        True if it waited or ran; `run` then raises Interrupted, unless the last node could not be stopped any more.
        False if ComfyUI does not know it, or it is done.
        """
        run = self._runs.get(prompt_id)
        if run is not None:
            run.cancel_requested = True
            if not run.sent:
                return True  # `run` stops it as soon as ComfyUI has it
        return await self._stop(prompt_id, run)

    async def _stop(self, prompt_id: str, run: Run | None) -> bool:
        before = await self.queue_snapshot(not_before=self._now())
        # dequeue first: for a waiting prompt, an interrupt alone answers 200 and lets it run
        await self._request("POST", "/queue", json={"delete": [prompt_id]})
        await self._interrupt(prompt_id)
        self._queue = None
        if prompt_id not in before.running and prompt_id not in before.pending:
            return False
        if prompt_id not in self._tasks:
            self._spawn(prompt_id, self._insist(prompt_id))
        if run is not None:
            run.put(Poke())
        return True

    async def _submit(
        self,
        graph: Mapping[str, Any],
        prompt_id: str,
        client_id: str,
        workflow: Mapping[str, Any] | None,
        outputs: Sequence[str],
    ) -> None:
        extra: dict[str, Any] = {} if workflow is None else {"extra_pnginfo": {"workflow": workflow}}
        # client_id is sent even without a websocket: without one, 0.3.75 leaves cached outputs out of the history
        body = {"prompt": graph, "prompt_id": prompt_id, "client_id": client_id, "extra_data": extra}
        if outputs:
            body["partial_execution_targets"] = list(outputs)
        try:
            status, answer = await self._request("POST", "/prompt", json=body, accept=(400, 413, 500))
        except ComfyUIUnavailable:
            # the request may have arrived, and only its answer was lost
            queue = await self.queue_snapshot(not_before=self._now())
            if prompt_id in queue.running or prompt_id in queue.pending or await self.history_entry(prompt_id):
                return
            status, answer = await self._request("POST", "/prompt", json=body, accept=(400, 413, 500))
        if status == 413:
            raise PromptRejected("the graph is larger than ComfyUI's --max-upload-size allows", {})
        if status == 500:
            raise PromptRejected("ComfyUI failed while it validated the graph; its log says why", {})
        record = self._decode(answer, "/prompt")
        node_errors = record.get("node_errors") or {}
        if status == 400:
            error = record.get("error") or {}
            text = error if isinstance(error, str) else error.get("message") or error.get("type") or "invalid graph"
            detail = "" if isinstance(error, str) else error.get("details") or ""
            raise PromptRejected(f"{text} ({detail})" if detail and not node_errors else text, node_errors)
        if node_errors:  # with a 200, ComfyUI may drop invalid outputs and run the rest
            await self._stop(prompt_id, None)
            raise PromptRejected("a part of the graph is invalid", node_errors)
        if record.get("prompt_id", prompt_id) != prompt_id:
            raise PromptRejected(f"ComfyUI queued the graph as {record['prompt_id']}, not as {prompt_id}", {})

    async def _interrupt(self, prompt_id: str) -> None:
        await self._request("POST", "/interrupt", json={"prompt_id": prompt_id})

    async def _insist(self, prompt_id: str) -> None:
        """Repeat the interrupt while the prompt still runs."""
        for _ in range(INSIST_TIMES):
            await asyncio.sleep(INSIST_S)
            try:
                queue = await self.queue_snapshot(not_before=self._now())
                if prompt_id not in queue.running:
                    return
                await self._interrupt(prompt_id)
            except ComfyUIError as error:
                log.debug("interrupt of %s was not repeated: %s", prompt_id, error)

    # -- history and queue, for run.py ---------------------------------------------------------------------------------

    async def history_entry(self, prompt_id: str) -> dict[str, Any] | None:
        """The history entry of a finished prompt; None both for an unfinished and an unknown one."""
        return (await self.get_json(f"/history/{prompt_id}")).get(prompt_id)

    async def queue_snapshot(self, *, not_before: float) -> QueueSnapshot:
        """The queue at `not_before` (loop time) or later. One request serves all runs that ask together."""
        async with self._queue_lock:
            known = self._queue
            now = self._now()
            if known is not None and known.asked_at >= not_before and now - known.asked_at <= self._queue_good_for_s:
                return known
            queue = await self.get_json("/queue")
            # ComfyUI returns the waiting items in heap order; their number gives the real order
            pending = sorted(queue.get("queue_pending") or (), key=lambda item: item[0])
            self._queue = QueueSnapshot(
                running=frozenset(item[1] for item in queue.get("queue_running") or ()),
                pending={item[1]: position for position, item in enumerate(pending)},
                asked_at=now,
            )
            self._queue_good_for_s = max(0.2, QUEUE_SHARE * (self._now() - now))
            return self._queue

    def hears(self, client_id: str) -> bool:
        """True while the websocket of this client id is open."""
        listener = self._open_listener()
        return listener.connected and listener.client_id == client_id

    def distrust(self, client_id: str) -> None:
        """A run ended without a frame on this connection: replace the connection, unless the frame is only late."""
        if client_id not in self._tasks:
            self._spawn(client_id, self._renew_if_silent(client_id))

    async def _renew_if_silent(self, client_id: str) -> None:
        listener = self._open_listener()
        last_heard = listener.heard_at
        await asyncio.sleep(LATE_S)
        # ComfyUI notifies every client when a run ends (`queue_updated`): a working connection gets a frame
        if self.hears(client_id) and listener.heard_at == last_heard:
            await listener.renew(client_id)

    # -- internals ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _registered(self, prompt_id: str, on_event: Callable[[Event], None] | None) -> Iterator[Run]:
        if prompt_id in self._runs:
            raise ValueError(f"run {prompt_id} is already being followed")
        run = self._runs[prompt_id] = Run(prompt_id, on_event)
        try:
            yield run
        finally:
            del self._runs[prompt_id]

    def _spawn(self, key: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[key] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def _deliver(self, frame: Frame) -> None:
        prompt_id = frame.prompt_id or self._executing
        run = self._runs.get(prompt_id) if prompt_id is not None else None
        if run is None:
            return
        for signal in frame.signals:
            if isinstance(signal, Started):
                self._executing = prompt_id
            run.put(signal)

    def _poke_all(self) -> None:
        self._queue = None
        for run in self._runs.values():
            if run.sent:
                run.put(Poke())

    async def _json(self, method: str, path: str, **options: Any) -> Any:
        _, body = await self._request(method, path, **options)
        return self._decode(body, path)

    def _decode(self, body: bytes, path: str) -> Any:
        try:
            return json.loads(body)
        except ValueError:
            raise ComfyUIError(f"{self.url}{path} did not answer with JSON: is it ComfyUI?") from None

    async def _request(
        self,
        method: str,
        path: str,
        *,
        accept: Container[int] = (),
        limit: int = MAX_JSON_BYTES,
        **options: Any,
    ) -> tuple[int, bytes]:
        """The status and body of one request; any status but 200 and those in `accept` is an error."""
        if self._session is None:
            raise RuntimeError("use ComfyUI as `async with ComfyUI(url) as comfyui:`")
        try:
            headers = tracing.headers()
            async with self._session.request(method, URL(self.url + path), headers=headers, **options) as response:
                body = await _read(response, limit, path)
        except TimeoutError as error:
            raise ComfyUIUnavailable(self.url, f"no answer to {path} in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ComfyUIUnavailable(self.url, str(error) or type(error).__name__) from error
        status = response.status
        if status == 200 or status in accept:
            return status, body
        if status in (502, 503, 504):
            raise ComfyUIUnavailable(self.url, f"HTTP {status}")
        text = body[:200].decode("utf-8", "replace").strip()
        raise ComfyUIError(f"ComfyUI answered HTTP {status} to {method} {path}" + (f": {text}" if text else ""))

    def _open_listener(self) -> Listener:
        if self._listener is None:
            raise RuntimeError("use ComfyUI as `async with ComfyUI(url) as comfyui:`")
        return self._listener

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


async def _read(response: aiohttp.ClientResponse, limit: int, path: str) -> bytes:
    """The body, up to a limit: an endless answer must not fill the memory."""
    if response.content_length is not None and response.content_length <= limit:
        return await response.read()
    body = bytearray()
    if response.content_length is None:
        async for chunk in response.content.iter_chunked(1 << 20):
            body += chunk
            if len(body) > limit:
                break
        else:
            return bytes(body)
    response.close()
    raise ComfyUIError(f"the answer to {path} is larger than {limit} bytes")
