"""Finds a child that lives and answers nothing, and kills it, so that its keeper starts it again.

How long silence is borne depends on what the process does meanwhile. ComfyUI is silent for minutes while it loads a
model or compiles one, but it computes or reads then; a process that neither answers nor does anything is frozen.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from bridge.service.children.child import ChildProcess

INTERVAL_S = 5.0
"""Between two questions. Rounds are counted, not seconds: this process may have been frozen itself."""
ANSWER_S = 5.0
"""How long a question may go unanswered."""
LEAST_SHARE = 0.05
"""Of one core: a process that takes less does nothing. Threads that wait for a lock take a little."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Doing(enum.IntEnum):
    """What a process that does not answer does; the higher, the less it can be excused."""

    WORKING = 0
    NOTHING = 1
    STOPPED = 2


WORDS = {
    Doing.WORKING: "is busy without an end",
    Doing.NOTHING: "neither computes nor reads",
    Doing.STOPPED: "was stopped by a signal",
}


@dataclass(frozen=True)
class Patience:
    """How many rounds in a row a child may be silent. A round takes 5 to 10 seconds."""

    working: int = 180
    nothing: int = 6
    stopped: int = 2

    def over(self, rounds: dict[Doing, int]) -> Doing | None:
        """What the child has done for too long; None if it may go on."""
        limits = {Doing.STOPPED: self.stopped, Doing.NOTHING: self.nothing, Doing.WORKING: self.working}
        return next((doing for doing, limit in limits.items() if rounds[doing] >= limit), None)


@dataclass(frozen=True)
class Activity:
    """What a child and its descendants have used so far: CPU ticks, bytes read and written, pages fetched from disk.

    `state` is the letter of the child's own state in proc(5).
    """

    cpu: int
    bytes: int
    faults: int
    state: str

    def since(self, earlier: Activity | None, seconds: float) -> Doing:
        """What they have done since then, `seconds` ago."""
        if self.state == "T":
            return Doing.STOPPED
        # One that waits for a disk (D) cannot be killed before the disk answers; one in a debugger (t) is in use.
        if self.state in "Dt" or earlier is None or self.cpu - earlier.cpu >= LEAST_SHARE * seconds * TICKS_PER_S:
            return Doing.WORKING
        return Doing.NOTHING if (self.bytes, self.faults) == (earlier.bytes, earlier.faults) else Doing.WORKING


def activity_of(session: int) -> Activity | None:
    """The activity of all processes of a session; None where the system does not tell (no Linux)."""
    cpu = count = faults = 0
    state, known = "", False
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name, in brackets, may hold anything. Fields as in proc(5), from the third on.
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) != session:
                continue
            known = True
            if int(folder.name) == session:
                state = fields[0]
            cpu += int(fields[11]) + int(fields[12])
            faults += int(fields[9])
            for line in (folder / "io").read_text().splitlines():
                if line.startswith(("read_bytes", "write_bytes", "rchar")):
                    count += int(line.partition(":")[2])
    return Activity(cpu, count, faults, state) if known else None


class Watchdog:
    """Asks one child whether it is alive while `watched` says that it should be."""

    def __init__(
        self,
        child: ChildProcess,
        answers: Callable[[], Awaitable[bool]],
        *,
        watched: Callable[[], bool],
        say: Callable[[str], None],
        patience: Patience = Patience(),  # noqa: B008 - frozen
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._child = child
        self._answers = answers
        self._watched = watched
        self._say = say
        self._patience = patience
        self._interval_s = interval_s

    async def run(self) -> None:
        """Watch until cancelled."""
        pid: int | None = None
        last: Activity | None = None
        rounds = dict.fromkeys(Doing, 0)
        while True:
            await asyncio.sleep(self._interval_s)
            if self._child.pid is None or self._child.pid != pid or not self._watched() or await self._alive():
                pid, last, rounds = self._child.pid, None, dict.fromkeys(Doing, 0)
                continue
            now = await asyncio.to_thread(activity_of, pid)
            doing = Doing.WORKING if now is None else now.since(last, self._interval_s)
            last = now
            rounds = {kind: count + 1 if doing >= kind else 0 for kind, count in rounds.items()}
            if (verdict := self._patience.over(rounds)) is not None:
                self._say(f"{self._child.name} does not answer any more and {WORDS[verdict]}; killing it")
                self._child.kill()

    async def _alive(self) -> bool:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._answers()
        except TimeoutError:
            return False
