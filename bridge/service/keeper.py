"""Keeps a child process alive: starts it, restarts it when it dies, and gives up if that does not help."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from bridge.service.child import ChildProcess
from bridge.service.errors import ServiceError

MAX_DEATHS = 5
WINDOW_S = 60.0
FIRST_DELAY_S = 0.2
LAST_DELAY_S = 5.0

Check = Callable[[], Awaitable[None]]


class Keeper:
    """Restarts one child until it dies 5 times in a minute, or 5 times in a row without being ready.

    `ready` waits until the started child works, and raises if it does not. `changed` is called after every start.
    """

    def __init__(
        self,
        child: ChildProcess,
        *,
        say: Callable[[str], None],
        changed: Callable[[], None],
        ready: Check | None = None,
        start: Check | None = None,
    ) -> None:
        self.child = child
        self.started = asyncio.Event()
        self.was_ready = asyncio.Event()
        self._say = say
        self._changed = changed
        self._ready = ready
        self._start = start or child.start
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        self._in_a_row = 0

    async def keep(self) -> None:
        """Run the child until this task is cancelled. Raises ServiceError if it dies too often.

        A failure of the first `ready` is raised as it is: a child that never worked is not restarted.
        """
        while True:
            await self._start()
            self.started.set()
            self._changed()
            try:
                if self._ready is not None:
                    await self._ready()
                self._in_a_row = 0
                self.was_ready.set()
            except Exception:
                if not self.was_ready.is_set() or self.child.returncode is None:
                    raise
            code = await self.child.wait()
            await self._after_death(code)

    async def _after_death(self, code: int) -> None:
        now = time.monotonic()
        self._deaths.append(now)
        self._in_a_row += 1
        recent = sum(now - death < WINDOW_S for death in self._deaths)
        if recent >= MAX_DEATHS or self._in_a_row >= MAX_DEATHS:
            tail = self.child.log_tail()
            raise ServiceError(
                f"{self.child.name} ended {MAX_DEATHS} times, last with {exit_text(code)}; "
                f"log: {self.child.log_file}" + (f"\n{tail}" if tail else "")
            )
        self._say(f"{self.child.name} ended with {exit_text(code)}; restarting it")
        await asyncio.sleep(min(FIRST_DELAY_S * 2 ** (recent - 1), LAST_DELAY_S))


def exit_text(code: int) -> str:
    """`code 1`, or `signal 9`."""
    return f"signal {-code}" if code < 0 else f"code {code}"
