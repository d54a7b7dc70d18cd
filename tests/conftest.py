"""Rules for every test."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# Before torch, here and in every process that a test starts: threads that wait sleep. More processes than cores run at
# a time, and threads that spin take most of it: a training test of 8 s of CPU time took 79 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

TESTS = Path(__file__).parent
SHARED_PROCESSES = ("service/modes", "service", "faults", "overlay", "bridge_process")
"""Folders whose tests share processes that take long to start: each runs on one worker.

Two services start for ``service``: all of its tests one after another would be the last to end.
"""
SPREAD = ("starter/test_quality.py",)
"""Files of long tests that share nothing worth sharing: each test runs on any worker."""
ORDER = ("service", "faults", "starter", "overlay", "bridge_process", "benchmarks", "pack", "bridge")
"""The folders in the order in which they begin.

The longest first: no worker is left with a long one when the others have nothing more to do. And what mostly waits
(faults, overlay) beside what mostly computes (service, starter), so that the cores are never idle.
"""


SHARED_FIXTURE = re.compile(r"\bcomfyui: ComfyServer[,)]")
"""The argument of a test of the pack that needs the ComfyUI which one worker starts once."""


def group(nodeid: str) -> str:
    """The tests that run on one worker, one after another, by the id of a test (relative to this folder)."""
    file = nodeid.split("::")[0]
    return nodeid if file in SPREAD else group_of_file(file)


@cache
def group_of_file(file: str) -> str:
    """The same for all tests of a file."""
    for folder in SHARED_PROCESSES:
        if file.startswith(f"{folder}/"):
            return folder
    if file.startswith("pack/") and SHARED_FIXTURE.search((TESTS / file).read_text(encoding="utf-8")):
        return "pack with ComfyUI"
    return file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the order of ``ORDER``."""
    first = {name: index for index, name in enumerate(ORDER)}
    items.sort(key=lambda item: first.get(item.path.relative_to(TESTS).parts[0], len(first)))  # stable


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What imports make is no garbage: to look at torch's half a million objects again and again took a third of it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``: groups instead of single tests (``--dist loadgroup`` of xdist 3.8 does nothing under pytest 9.2)."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid.removeprefix(f"{TESTS.name}/"))

    return Groups(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """With CI=true a skipped test is a failed one: all that a test needs is installed. Only `gpu` may be missing."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not item.get_closest_marker("gpu"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report
