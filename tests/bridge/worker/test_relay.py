"""What is told of a run while it goes on, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from bridge.comfyui.messages import Download, Loading, NodeStarted, Progress, Started
from bridge.contract import JobEvent
from bridge.worker.job.relay import Relay

JOB = "8b6a2f0e-8c2e-4a57-9c4e-5c8f4e2a1d11"
GRAPH = {"1": {"class_type": "KSampler", "inputs": {}}}


def relay_to(told: list[str], and_then: Callable[[], None] = lambda: None) -> Relay:
    async def publish(event: JobEvent) -> None:
        told.append(event.type)
        and_then()

    return Relay(JOB, GRAPH, publish, watched=lambda: False)


async def test_that_a_run_began_is_published_though_it_is_over_at_once() -> None:
    told: list[str] = []
    async with relay_to(told) as relay:
        relay.take(Started())
        relay.take(NodeStarted("1"))
    assert told == ["started"]


async def test_that_a_run_began_is_told_before_its_first_step() -> None:
    told: list[str] = []
    async with relay_to(told) as relay:
        relay.take(Started())
        relay.take(Progress("1", 1, 4))
    assert told == ["started", "progress"]


async def test_steps_are_told_at_most_every_tenth_of_a_second_with_the_seconds_left() -> None:
    told: list[tuple[float | None, float | None]] = []

    async def publish(event: JobEvent) -> None:
        told.append((event.value, event.seconds_left))

    now = 0.0
    async with Relay(JOB, GRAPH, publish, watched=lambda: False, clock=lambda: now) as relay:
        for value, now in ((1, 10.0), (2, 10.05), (3, 10.2), (4, 10.25), (5, 10.3)):  # noqa: B007 - the clock tells it
            relay.take(Progress("1", value, 5))
    assert told == [(1, None), (3, 0.2), (5, 0.0)]


async def test_that_a_run_began_is_told_though_nothing_follows() -> None:
    told: list[str] = []
    heard = asyncio.Event()
    async with relay_to(told, heard.set) as relay:
        relay.take(Started())
        await asyncio.wait_for(heard.wait(), 10)
        assert told == ["started"]
    assert told == ["started"]


async def test_a_run_that_never_began_is_not_said_to_have_begun() -> None:
    told: list[str] = []
    async with relay_to(told) as relay:
        relay.take(NodeStarted("1"))
    assert told == []


@pytest.mark.parametrize(
    "report", [Loading("1", "starter", 10, 24_000_000), Download("1", "repo", "file", 10, 24_000_000, None)]
)
async def test_bytes_are_told_once_though_the_node_has_a_bar_of_them_too(report: Loading | Download) -> None:
    told: list[tuple[str | None, float | None]] = []

    async def publish(event: JobEvent) -> None:
        told.append((event.phase, event.maximum))

    async with Relay(JOB, GRAPH, publish, watched=lambda: False) as relay:
        relay.take(report)
        relay.take(Progress("1", 10, 24_000_000))
        relay.take(Progress("1", 1, 4))  # a node may load, and draw afterwards
    assert told == [("download" if isinstance(report, Download) else "load", 24_000_000), ("sample", 4)]
