"""Who is frozen, and who is only busy: real processes that do not answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from bridge.service.children.child import ChildProcess
from bridge.service.children.watchdog import LEAST_SHARE, TICKS_PER_S, Activity, Doing, Patience, Watchdog

BUSY = "import threading, time\nwhile True: pass"
IDLE = "import time\ntime.sleep(600)"
READS = "import os, time\nwhile True:\n open(os.__file__, 'rb').read(); time.sleep(0.2)"
HELPER = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'while True: pass'])"
WAITS_FOR_LOCK = "import threading\nlock = threading.Lock(); lock.acquire(); lock.acquire()"
LEAST = round(LEAST_SHARE * 5 * TICKS_PER_S)
"""CPU time in a round of five seconds."""
ROUNDS = 3
PATIENCE = Patience(working=8, nothing=ROUNDS, stopped=1)


@pytest.mark.parametrize(
    ("program", "stopped", "verdict"),
    [
        (IDLE, True, "was stopped by a signal"),
        (BUSY, True, "was stopped by a signal"),
        (IDLE, False, "neither computes nor reads"),
        (WAITS_FOR_LOCK, False, "neither computes nor reads"),
        (BUSY, False, None),
        (READS, False, None),
        (HELPER, False, None),  # A compiler is a process of its own.
    ],
)
async def test_a_silent_child_is_killed_when_it_does_nothing(
    tmp_path: Path, program: str, stopped: bool, verdict: str | None
) -> None:
    said: list[str] = []
    child = ChildProcess("child", [sys.executable, "-c", program], log_file=tmp_path / "log", env=os.environ)
    await child.start()
    asked = 0

    async def silence() -> bool:
        nonlocal asked
        asked += 1
        return False

    watchdog = Watchdog(child, silence, watched=lambda: True, say=said.append, patience=PATIENCE, interval_s=0.8)
    watching = asyncio.create_task(watchdog.run())
    try:
        if stopped:
            assert child.pid
            os.kill(child.pid, signal.SIGSTOP)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30 if verdict else 0.8 * (ROUNDS + 3)):
                await child.wait()
        assert asked > 0
        assert said == ([f"child does not answer any more and {verdict}; killing it"] if verdict else [])
        assert (child.returncode == -signal.SIGKILL) == (verdict is not None)
    finally:
        watching.cancel()
        await child.stop(0)


@pytest.mark.parametrize(
    ("state", "cpu", "count", "faults", "doing"),
    [
        ("S", 0, 0, 0, Doing.NOTHING),
        ("R", LEAST - 1, 0, 0, Doing.NOTHING),
        ("R", LEAST, 0, 0, Doing.WORKING),
        ("S", 0, 1, 0, Doing.WORKING),
        ("S", 0, 0, 1, Doing.WORKING),  # Weights that are mapped, not read.
        ("D", 0, 0, 0, Doing.WORKING),
        ("t", 0, 0, 0, Doing.WORKING),
        ("T", 1000, 1000, 1000, Doing.STOPPED),
    ],
)
def test_what_counts_as_work(state: str, cpu: int, count: int, faults: int, doing: Doing) -> None:
    assert Activity(100 + cpu, 100 + count, 100 + faults, state).since(Activity(100, 100, 100, "S"), 5.0) is doing
    first = Activity(cpu, count, faults, state).since(None, 5.0)
    assert first is (Doing.STOPPED if state == "T" else Doing.WORKING)


async def test_one_that_is_busy_without_an_end_is_killed_at_last(tmp_path: Path) -> None:
    said: list[str] = []
    child = ChildProcess("child", [sys.executable, "-c", BUSY], log_file=tmp_path / "log", env=os.environ)
    await child.start()

    async def silence() -> bool:
        await asyncio.sleep(3600)
        return True

    patience = Patience(working=1, nothing=100, stopped=100)
    watchdog = Watchdog(child, silence, watched=lambda: True, say=said.append, patience=patience, interval_s=0.2)
    watching = asyncio.create_task(watchdog.run())
    try:
        async with asyncio.timeout(30):
            await child.wait()
        assert said == ["child does not answer any more and is busy without an end; killing it"]
    finally:
        watching.cancel()
        await child.stop(0)


async def test_a_child_that_starts_or_answers_is_left_alone(tmp_path: Path) -> None:
    for watched, answers in ((False, False), (True, True)):
        child = ChildProcess("child", [sys.executable, "-c", IDLE], log_file=tmp_path / "log", env=os.environ)
        await child.start()

        async def answer(answers: bool = answers) -> bool:
            return answers

        watchdog = Watchdog(
            child, answer, watched=lambda watched=watched: watched, say=print, patience=PATIENCE, interval_s=0.05
        )
        watching = asyncio.create_task(watchdog.run())
        await asyncio.sleep(1)
        assert child.returncode is None
        watching.cancel()
        await child.stop(0)
