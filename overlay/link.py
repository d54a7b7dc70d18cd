"""Runs the client's coroutines beside GTK's main loop, so that a window never waits for the service.

Nothing else in the overlay knows of threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from bridge.client import ClientError, LoopThread
from bridge.contract import ErrorBody

Result = TypeVar("Result")
Deliver = Callable[[Callable[[], None]], object]
_log = logging.getLogger(__name__)


class Link:
    """An asyncio loop in a thread of its own. ``deliver`` runs a function on the thread of the windows.

    ``deliver`` is ``GLib.idle_add`` in the application and a plain call in tests.
    """

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._thread = LoopThread("overlay link")

    def run(
        self,
        work: Coroutine[Any, Any, Result],
        done: Callable[[Result], object] | None = None,
        failed: Callable[[ClientError], object] | None = None,
    ) -> Future[Result]:
        """Run ``work``, then call ``done`` or ``failed`` on the windows' thread. A cancelled future calls none."""
        future = self._thread.start(work)

        def ended(finished: Future[Result]) -> None:
            try:
                result = finished.result()
            except (CancelledError, asyncio.CancelledError):
                return
            except ClientError as error:
                if failed is not None:
                    self.deliver(failed, error)
                else:
                    _log.warning("%s", error)
                return
            except Exception as error:
                # The barrier of this thread: whoever waits for an answer gets one, whatever went wrong.
                _log.exception("the overlay's work in the background failed")
                if failed is not None:
                    self.deliver(failed, ClientError(500, ErrorBody(code="unexpected", message=str(error))))
                return
            if done is not None:
                self.deliver(done, result)

        future.add_done_callback(ended)
        return future

    def deliver(self, callback: Callable[..., object], *args: Any) -> None:
        """Call ``callback`` on the windows' thread."""
        self._deliver(lambda: _call(callback, args))

    def stop(self, last: Coroutine[Any, Any, object] | None = None) -> None:
        """End everything, then run ``last``, and wait for the thread."""
        self._thread.stop(last)


def _call(callback: Callable[..., object], args: tuple[Any, ...]) -> None:
    callback(*args)
