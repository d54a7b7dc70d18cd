"""The way to the bridge: its HTTP interface, asked from one asyncio thread so that the window never waits.

`Bridge` is the interface itself, asynchronous and typed by the wire format's own models. `LinkThread` runs its
coroutines beside GTK's loop and hands results back through one function (``GLib.idle_add`` in the application, a plain
call in tests). Nothing else in the overlay knows of threads.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

import aiohttp
from pydantic import ValidationError

from bridge.contract import (
    CancelAnswer,
    ErrorBody,
    ErrorEnvelope,
    JobEvent,
    JobPage,
    JobState,
    ModelInfoResponse,
    ModeList,
    ModeSummary,
    read_answer,
)
from overlay.translate import _

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 30.0
LISTED_JOBS = 100
"""How far back the history of images goes."""
HEARTBEAT_S = 20.0
"""A WebSocket that answers no ping for so long is dead (the machine slept, a network went away)."""

Result = TypeVar("Result")
Deliver = Callable[[Callable[[], None]], object]
_log = logging.getLogger(__name__)


class BridgeFailure(Exception):
    """The bridge answered with an error (``status``), or not at all (``status`` 0)."""

    def __init__(self, status: int, error: ErrorBody) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error

    @property
    def unreachable(self) -> bool:
        """Whether nobody answered, so that the same request may be sent again."""
        return self.status == 0

    @property
    def not_ready(self) -> bool:
        """Whether it may answer otherwise in a moment."""
        return self.status == 503


class Bridge:
    """One service. ``find_url`` is asked before every request: a service that was started anew may be elsewhere."""

    def __init__(self, find_url: Callable[[], str], token: str | None = None) -> None:
        self._find_url = find_url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def check_ready(self) -> None:
        """Raise BridgeFailure unless a request would be run now."""
        await self._ask("GET", "/readyz")

    async def model_info(self) -> ModelInfoResponse:
        """The models, and the machine that runs them."""
        return read_answer(ModelInfoResponse, await self._ask("GET", "/v1/model-info"))

    async def modes(self) -> list[ModeSummary]:
        """The modes that work."""
        listed = read_answer(ModeList, await self._ask("GET", "/v1/modes"))
        return [mode for mode in listed.details if mode.error is None]

    async def mode_schema(self, name: str) -> dict[str, Any]:
        """What a mode takes, as JSON Schema."""
        return json.loads(await self._ask("GET", f"/v1/modes/{name}"))

    async def submit(self, body: dict[str, Any]) -> JobState:
        """Queue a job. With the same ``job_id`` again, it is the same job."""
        return read_answer(JobState, await self._ask("POST", "/v1/jobs", json=body))

    async def job(self, job_id: str) -> JobState:
        """The state of a job."""
        return read_answer(JobState, await self._ask("GET", f"/v1/jobs/{job_id}"))

    async def jobs(self) -> list[JobState]:
        """The jobs that the service remembers, newest first."""
        return read_answer(JobPage, await self._ask("GET", f"/v1/jobs?limit={LISTED_JOBS}")).jobs

    async def cancel(self, job_id: str) -> JobState:
        """Cancel a job and say what became of it."""
        return read_answer(CancelAnswer, await self._ask("DELETE", f"/v1/jobs/{job_id}", timeout_s=60.0))

    async def image(self, job_id: str, index: int) -> bytes:
        """Image ``index`` of a job, encoded."""
        return await self._ask("GET", f"/v1/jobs/{job_id}/images/{index}")

    async def events(self, job_id: str) -> AsyncIterator[JobEvent]:
        """What happens to a job, its present state first, to the final event. Raises BridgeFailure."""
        url = self._find_url() + f"/v1/jobs/{job_id}/events?previews=true"
        try:
            async with self._open().ws_connect(url, heartbeat=HEARTBEAT_S, headers=self._headers) as socket:
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        yield read_answer(JobEvent, message.data)
        except aiohttp.WSServerHandshakeError as error:
            raise _failure(error.status, b"", url) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(self._find_url()) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # No proxy of the environment: the service is on this machine.
            self._session = aiohttp.ClientSession(trust_env=False)
        return self._session

    async def _ask(self, method: str, path: str, *, timeout_s: float = ANSWER_TIMEOUT_S, **options: Any) -> bytes:
        base = self._find_url()
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._open().request(
                method, base + path, headers=self._headers, timeout=timeout, **options
            ) as answer:
                data = await answer.read()
                if answer.ok:
                    return data
                raise _failure(answer.status, data, base)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(base) from error


def _failure(status: int, data: bytes, url: str) -> BridgeFailure:
    try:
        return BridgeFailure(status, read_answer(ErrorEnvelope, data).error)
    except ValidationError:
        return BridgeFailure(status, ErrorBody(code="unexpected", message=f"{url} answered with status {status}"))


def _unreachable(url: str) -> BridgeFailure:
    return BridgeFailure(0, ErrorBody(code="unreachable", message=_("Nothing answers at {url}").format(url=url)))


class LinkThread:
    """An asyncio loop in a thread of its own. ``deliver`` runs a function on the thread that shows things."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bridge link", daemon=True)
        self._thread.start()

    def run(
        self,
        work: Coroutine[Any, Any, Result],
        done: Callable[[Result], object] | None = None,
        failed: Callable[[BridgeFailure], object] | None = None,
    ) -> Future[Result]:
        """Run ``work``; ``done`` or ``failed`` follow on the showing thread. Cancelling the future ends it silently."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)

        def ended(finished: Future[Result]) -> None:
            try:
                result = finished.result()
            except (CancelledError, asyncio.CancelledError):
                return
            except BridgeFailure as failure:
                if failed is not None:
                    self.deliver(failed, failure)
                else:
                    _log.warning("%s", failure)
                return
            except Exception as error:
                # The barrier of this thread: whoever waits for an answer gets one, whatever went wrong.
                _log.exception("the overlay's work in the background failed")
                if failed is not None:
                    self.deliver(failed, BridgeFailure(500, ErrorBody(code="unexpected", message=str(error))))
                return
            if done is not None:
                self.deliver(done, result)

        future.add_done_callback(ended)
        return future

    def deliver(self, callback: Callable[..., object], *args: Any) -> None:
        """Call ``callback`` on the showing thread."""
        self._deliver(lambda: _call(callback, args))

    def stop(self, last: Coroutine[Any, Any, object] | None = None) -> None:
        """End everything, then run ``last``, and wait for the thread."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            if last is not None:
                await last

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(timeout=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)


def _call(callback: Callable[..., object], args: tuple[Any, ...]) -> None:
    callback(*args)
