"""Keeps a child process alive: starts it, restarts it when it dies, and waits longer when that does not help."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

from bridge.service.children.child import ChildProcess
from bridge.service.errors import ServiceError

MAX_DEATHS = 5
"""After so many deaths in a row the service says that something is wrong, and waits longer."""
WINDOW_S = 60.0
"""A child that lived for this long has recovered."""
FIRST_DELAY_S = 0.2
SHORT_DELAY_S = 5.0
LAST_DELAY_S = 60.0

Check = Callable[[], Awaitable[None]]


class Keeper:
    """Restarts one child for as long as the service runs.

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
        self.was_ready = asyncio.Event()
        self.works = False
        """Whether the child has become ready and has not ended since."""
        self._say = say
        self._changed = changed
        self._ready = ready
        self._start = start or child.start
        self._deaths = 0  # in a row
        self._started_at = 0.0

    async def keep(self) -> None:
        """Run the child until this task is cancelled.

        Raises what the first `ready` raises, and ServiceError if the program cannot be started at all: a child that
        never worked is not restarted. A child that a signal ended is: the kernel may have taken its memory.
        """
        while True:
            try:
                await self._start()
            except OSError as error:
                await self._not_started(error)
                continue
            self._started_at = time.monotonic()
            self._changed()
            try:
                if self._ready is not None:
                    await self._ready()
                self.works = True
                self.was_ready.set()
            except Exception as error:
                code = self.child.returncode
                if not self.was_ready.is_set() and (code is None or code >= 0):
                    raise
                if code is None:
                    self._say(f"{self.child.name} is not ready: {first_line(error)}")
                    await self.child.stop()
            code = await self.child.wait()
            await self._after_death(code)

    async def _not_started(self, error: OSError) -> None:
        reason = f"{self.child.name} cannot be started ({error.strerror or error})"
        if not self.was_ready.is_set() and isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
            raise ServiceError(f"{reason}: {self.child.argv[0]}") from error
        self._deaths += 1
        delay = self._delay()
        self._say(f"{reason}; trying again in {delay:g} s")
        await asyncio.sleep(delay)

    async def _after_death(self, code: int) -> None:
        recovered = self.works and time.monotonic() - self._started_at >= WINDOW_S
        self._deaths = 1 if recovered else self._deaths + 1
        self.works = False
        delay = self._delay()
        how = f"{self.child.name} ended with {exit_text(code)}"
        if self._deaths < MAX_DEATHS:
            killed = code == -signal.SIGKILL and not self.was_ready.is_set()
            self._say(f"{how}; restarting it" + (" (the kernel kills when memory runs out)" if killed else ""))
        else:
            tail = self.child.log_tail() if self._deaths == MAX_DEATHS else ""
            self._say(
                f"{self.child.name} ended {self._deaths} times in a row, last with {exit_text(code)}; "
                f"trying again in {delay:g} s; log: {self.child.log_file}" + (f"\n{tail}" if tail else "")
            )
        await asyncio.sleep(delay)

    def _delay(self) -> float:
        if self._deaths < MAX_DEATHS:
            return min(FIRST_DELAY_S * 2 ** (self._deaths - 1), SHORT_DELAY_S)
        return min(SHORT_DELAY_S * 2 ** min(self._deaths - MAX_DEATHS, 10), LAST_DELAY_S)


def exit_text(code: int) -> str:
    """`code 1`, or `signal 9`."""
    return f"signal {-code}" if code < 0 else f"code {code}"


def first_line(error: BaseException) -> str:
    """The first line of an error, for a line of its own."""
    return (str(error) or type(error).__name__).splitlines()[0]
