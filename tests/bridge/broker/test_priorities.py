"""Priorities on a real nats-server: the order in which jobs are taken, and the queue of a version without them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import ConsumerConfig

from bridge.broker.jobs import JobQueue
from bridge.broker.priorities import TURNS, consumer_of
from bridge.broker.stores import make_stream, queue_config
from bridge.contract import PRIORITIES, Job, JobKind, Priority
from bridge.names import Names
from bridge.settings import Retention

SMALL = Retention(jobs_bytes=2**24, images_bytes=2**25)


def job(priority: Priority = "normal", kind: JobKind = JobKind.GENERATE) -> Job:
    return Job(job_id=str(uuid4()), kind=kind, mode="m", parameters={}, submitted_at=time.time(), priority=priority)


@pytest.fixture
async def names(nc: Client) -> AsyncIterator[Names]:
    names = Names(f"prio{uuid.uuid4().hex}")
    yield names
    js = nc.jetstream()
    for name in [info.config.name for info in await js.streams_info()]:
        if name and names.prefix in name.lower():
            await js.delete_stream(name)


@pytest.fixture
async def own(nc: Client, names: Names) -> JobQueue:
    return await JobQueue.open(nc, max_pending=100, names=names, retention=SMALL)


async def take(queue: JobQueue, count: int) -> list[Priority]:
    """Take so many jobs to their end; their priorities, in order."""
    subscription = await queue.subscribe()
    taken: list[Priority] = []
    for _ in range(count):
        [msg] = await subscription.fetch(1, timeout=2)
        taken.append(Job.model_validate_json(msg.data).priority)
        await msg.ack_sync()
    return taken


async def test_a_higher_priority_is_taken_first(own: JobQueue) -> None:
    for priority in ("low", "normal", "high"):
        await own.submit(job(priority))
    assert await take(own, 3) == ["high", "normal", "low"]


async def test_of_the_same_priority_the_first_is_taken_first(own: JobQueue) -> None:
    jobs = [await own.submit(job("high", kind)) for kind in (JobKind.LOAD, JobKind.GENERATE, JobKind.LOAD)]
    subscription = await own.subscribe()
    for wanted in jobs:
        [msg] = await subscription.fetch(1, timeout=2)
        assert Job.model_validate_json(msg.data).job_id == wanted.job_id
        await msg.ack_sync()


async def test_no_priority_starves_while_higher_ones_keep_coming(own: JobQueue) -> None:
    for _ in range(len(TURNS)):
        for priority in PRIORITIES:
            await own.submit(job(priority))
    taken = await take(own, len(TURNS))
    assert taken.count("high") == 6
    assert taken.count("normal") == 1
    assert taken.count("low") == 1


@pytest.mark.parametrize("priority", PRIORITIES)
async def test_who_waits_for_work_gets_a_job_of_any_priority_at_once(own: JobQueue, priority: Priority) -> None:
    subscription = await own.subscribe()
    waiting = asyncio.create_task(subscription.fetch(1, timeout=5))
    await asyncio.sleep(0.2)
    began = time.monotonic()
    sent = await own.submit(job(priority))
    [msg] = await waiting
    assert time.monotonic() - began < 1
    assert Job.model_validate_json(msg.data).job_id == sent.job_id
    assert msg.metadata.num_delivered == 1
    await msg.ack_sync()


async def test_without_a_job_the_time_runs_out(own: JobQueue) -> None:
    subscription = await own.subscribe()
    began = time.monotonic()
    with pytest.raises(NatsTimeout):
        await subscription.fetch(1, timeout=0.5)
    assert 0.4 < time.monotonic() - began < 2


async def test_a_pull_that_is_over_takes_no_job_with_it(own: JobQueue) -> None:
    """Who waited for three priorities and got one job leaves the others to those who still ask."""
    first, second = await own.subscribe(), await own.subscribe()
    waiting = asyncio.create_task(first.fetch(1, timeout=5))
    await asyncio.sleep(0.2)
    await own.submit(job("normal"))
    [msg] = await waiting
    await own.submit(job("high"))
    began = time.monotonic()
    [other] = await second.fetch(1, timeout=5)
    assert time.monotonic() - began < 1
    assert Job.model_validate_json(other.data).priority == "high"
    for each in (msg, other):
        await each.ack_sync()


async def test_jobs_of_two_priorities_at_once_are_both_delivered(own: JobQueue) -> None:
    for _ in range(20):
        subscription = await own.subscribe()
        waiting = asyncio.create_task(subscription.fetch(1, timeout=5))
        await asyncio.sleep(0.01)
        await asyncio.gather(*(own.submit(job(priority)) for priority in PRIORITIES))
        messages: list[Msg] = [(await waiting)[0]]
        began = time.monotonic()
        messages += [(await subscription.fetch(1, timeout=5))[0] for _ in range(2)]
        assert time.monotonic() - began < 2
        assert len({msg.data for msg in messages}) == 3
        for msg in messages:
            await msg.ack_sync()


async def test_the_queue_of_a_version_without_priorities_is_drained(nc: Client, names: Names) -> None:
    """Its consumer takes every subject; one of its jobs was delivered, two wait."""
    js = nc.jetstream()
    await make_stream(js, queue_config(names, 100))
    old = [job(kind=kind) for kind in (JobKind.GENERATE, JobKind.LOAD, JobKind.GENERATE)]
    for each in old:
        data = each.model_dump_json(exclude={"priority"}).encode()
        await js.publish(f"{names.jobs}.{each.kind}", data)
    subscription = await js.pull_subscribe(
        f"{names.jobs}.>",
        durable=names.consumer,
        stream=names.stream,
        config=ConsumerConfig(ack_wait=15.0, max_deliver=-1),
    )
    [held] = await subscription.fetch(1, timeout=2)

    queue = await JobQueue.open(nc, max_pending=100, names=names, retention=SMALL)
    await queue.submit(job("high"))
    assert await take(queue, 3) == ["high", "normal", "normal"]
    await held.ack_sync()  # The worker of the older version ends its job as ever.
    assert (await js.stream_info(names.stream)).state.messages == 0

    # And it goes on beside the new ones, with the jobs that it understands.
    await queue.submit(job("normal"))
    [held] = await subscription.fetch(1, timeout=2)
    await held.ack_sync()


async def test_a_closed_subscription_leaves_jobs_where_they_are(own: JobQueue) -> None:
    closed = asyncio.Event()
    subscription, other = await own.subscribe(closed), await own.subscribe()
    waiting = asyncio.create_task(subscription.fetch(1, timeout=5))
    await asyncio.sleep(0.2)
    closed.set()
    with pytest.raises(NatsTimeout):
        await asyncio.wait_for(waiting, 1)
    await asyncio.sleep(0.1)
    for priority in ("low", "high"):
        await own.submit(job(priority))
    for priority in ("high", "low"):
        [msg] = await other.fetch(1, timeout=2)
        assert (Job.model_validate_json(msg.data).priority, msg.metadata.num_delivered) == (priority, 1)
        await msg.ack_sync()


async def test_jobs_that_come_while_the_subscription_is_closed_are_taken_by_priority(own: JobQueue) -> None:
    closed = asyncio.Event()
    subscription = await own.subscribe(closed)
    waiting = asyncio.create_task(subscription.fetch(1, timeout=5))
    await asyncio.sleep(0.2)
    closed.set()
    with pytest.raises(NatsTimeout):
        await waiting
    for priority in ("low", "normal", "high"):
        await own.submit(job(priority))
    closed.clear()
    for priority in PRIORITIES:
        [msg] = await subscription.fetch(1, timeout=2)
        assert (Job.model_validate_json(msg.data).priority, msg.metadata.num_delivered) == (priority, 1)
        await msg.ack_sync()


async def test_a_consumer_that_is_gone_is_an_error_and_comes_back(own: JobQueue, nc: Client) -> None:
    subscription = await own.subscribe()
    await nc.jetstream().delete_consumer(own.names.stream, consumer_of(own.names, "high"))
    with pytest.raises(Exception, match="."):
        await subscription.fetch(1, timeout=1)
    sent = await own.submit(job("high"))
    [msg] = await (await own.subscribe()).fetch(1, timeout=2)
    assert Job.model_validate_json(msg.data).job_id == sent.job_id
    await msg.ack_sync()
