"""Rules for every test."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

SHARED_PROCESSES = ("service", "faults", "overlay", "bridge_process")
"""Folders whose tests share processes that take long to start: each runs on one worker, the longest begins first."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``-n``: what shares processes stays together, and the long ones begin first."""
    if not config.getoption("numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        return
    tests = Path(__file__).parent

    def group(item: pytest.Item) -> str:
        place = item.path.relative_to(tests)
        return str(place.parent if place.parts[0] in SHARED_PROCESSES else place)

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    first = {name: index for index, name in enumerate(SHARED_PROCESSES)}
    items.sort(key=lambda item: first.get(item.path.relative_to(tests).parts[0], len(first)))  # stable


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """With CI=true a skipped test is a failed one: all that a test needs is installed. Only `gpu` may be missing."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not item.get_closest_marker("gpu"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report
