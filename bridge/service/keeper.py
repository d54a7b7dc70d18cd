"""Keeps one child alive: starts it, starts it again when it dies, and gives up when that does not help."""

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
    """One child and its rule: at most 5 deaths in a minute, and at most 5 in a row before it was ever ready.

    `ready` waits until the started child works, and raises when it will not. `changed` is called after every start.
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
        """Run the child until this task is cancelled; raises ServiceError when it dies too often.

        A failure of the first `ready` is raised as it is: what never worked is not tried again.
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
                f"{self.child.name} ended {MAX_DEATHS} times, last with {describe_exit(code)}; "
                f"log: {self.child.log_file}" + (f"\n{tail}" if tail else "")
            )
        self._say(f"{self.child.name} ended with {describe_exit(code)}; starting it again")
        await asyncio.sleep(min(FIRST_DELAY_S * 2 ** (recent - 1), LAST_DELAY_S))


def describe_exit(code: int) -> str:
    """`code 1`, or `signal 9`."""
    return f"signal {-code}" if code < 0 else f"code {code}"
