"""How long the keeper waits before it starts a child again."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from bridge.service.children import keeper as module
from bridge.service.children.child import ChildProcess
from bridge.service.children.keeper import LAST_DELAY_S, MAX_DEATHS, Keeper


async def test_the_waits_grow_up_to_a_bound_and_start_over_after_a_good_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = ChildProcess("child", [sys.executable, "-S", "-c", ""], log_file=tmp_path / "log", env=os.environ)
    waits: list[float] = []
    said: list[str] = []
    enough = asyncio.Event()
    sleep = asyncio.sleep

    async def short(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == MAX_DEATHS + 6:
            monkeypatch.setattr(module, "WINDOW_S", 0.0)  # From now on every life is long enough.
        if len(waits) >= MAX_DEATHS + 8:
            enough.set()
            await sleep(3600)

    monkeypatch.setattr(module.asyncio, "sleep", short)
    keeping = asyncio.create_task(Keeper(child, say=said.append, changed=lambda: None).keep())
    await asyncio.wait_for(enough.wait(), 30)
    keeping.cancel()
    growing = waits[: MAX_DEATHS + 6]
    assert growing == sorted(growing)
    assert growing[0] < 1
    assert growing[-1] == LAST_DELAY_S
    assert waits[-1] == growing[0]
    assert "child ended with code 0; restarting it" in said
    assert any(line.startswith(f"child ended {MAX_DEATHS + 5} times in a row") for line in said)
    await child.stop(0)


@pytest.mark.parametrize("number", [12, 28, 11])  # no memory, no space, no more processes
async def test_a_system_that_cannot_start_a_process_now_is_asked_again(tmp_path: Path, number: int) -> None:
    child = ChildProcess("child", [sys.executable, "-S", "-c", "input()"], log_file=tmp_path / "log", env=os.environ)
    said: list[str] = []
    failures = [OSError(number, os.strerror(number))] * 2

    async def start() -> None:
        if failures:
            raise failures.pop()
        await child.start()

    keeper = Keeper(child, say=said.append, changed=lambda: None, start=start)
    keeping = asyncio.create_task(keeper.keep())
    await asyncio.wait_for(keeper.was_ready.wait(), 30)
    assert [line.partition(";")[0] for line in said[:2]] == [f"child cannot be started ({os.strerror(number)})"] * 2
    keeping.cancel()
    await child.stop(0)
