"""An asyncio event loop in a thread of its own, for programs that are not asynchronous themselves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from bridge.client.errors import ClientClosed

CLEAN_UP_S = 60.0
"""How long interrupted work may take to end in an orderly way, such as by cancelling its job."""
STOP_S = 5.0
Result = TypeVar("Result")


class LoopThread:
    """Runs coroutines on a daemon thread. All methods may be called from any thread."""

    def __init__(self, name: str) -> None:
        self._ready = threading.Event()
        self._last: Coroutine[Any, Any, object] | None = None
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()
        self._ready.wait()

    def start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run `work`. Cancelling the future cancels it. After `stop` nothing runs: the future is cancelled."""
        if self._loop.is_closed():
            work.close()
            ended: Future[Result] = Future()
            ended.cancel()
            return ended
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run `work` and return its result. An interrupt meanwhile (Ctrl-C) cancels it, as in `running`."""
        with self.running(work) as outcome:
            return outcome.result()

    @contextlib.contextmanager
    def running(self, work: Coroutine[Any, Any, Result]) -> Iterator[Future[Result]]:
        """Run `work` beside the block, which gets its outcome.

        A block that is interrupted or fails cancels the work, waits until that has cleaned up, and raises.
        """
        outcome: Future[Result] = Future()
        tasks: list[asyncio.Task[Result]] = []

        def begin() -> None:
            tasks.append(self._loop.create_task(work))
            tasks[0].add_done_callback(lambda task: _settle(outcome, task))

        self._loop.call_soon_threadsafe(begin)
        try:
            yield outcome
        except BaseException:
            if not outcome.done():
                self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
                with contextlib.suppress(TimeoutError):
                    outcome.exception(timeout=CLEAN_UP_S)
            raise

    def stop(self, last: Coroutine[Any, Any, object] | None = None) -> None:
        """Cancel everything, run `last`, and end the thread. Waits for that, unless the thread itself calls."""
        self._last = last
        self._loop.call_soon_threadsafe(self._stopping.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(STOP_S)

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._stopping = asyncio.Event()
            self._ready.set()
            runner.run(self._live())

    async def _live(self) -> None:
        await self._stopping.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._last is not None:
            await self._last


def _settle(outcome: Future[Result], task: asyncio.Task[Result]) -> None:
    if task.cancelled():
        outcome.set_exception(ClientClosed())
    elif (error := task.exception()) is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(task.result())
