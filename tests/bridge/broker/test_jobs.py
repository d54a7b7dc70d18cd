"""The queue on a real nats-server: accepted means kept, once, bounded, and cancelled when asked."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest

from bridge.broker.connection import connect
from bridge.broker.jobs import JobQueue, StoredState
from bridge.contract import (
    ErrorBody,
    ErrorDetail,
    Job,
    JobEvent,
    JobKind,
    JobResultEvent,
    JobState,
    JobStatus,
    QueueFull,
    Unavailable,
    UnknownJob,
)
from bridge.gateway.cancellation import cancel
from tests.bridge.conftest import MAX_PENDING


def job() -> Job:
    return Job(
        job_id=str(uuid4()),
        kind=JobKind.GENERATE,
        mode="text-to-image",
        model="schnell",
        parameters={"prompt": "a cat"},
        submitted_at=time.time(),
    )


async def finish(queue: JobQueue, state: JobState) -> JobState:
    stored = await queue.stored_state(state.job_id)
    done = stored.state.moved(JobStatus.DONE, started_at=1.0, finished_at=2.0)
    assert await queue.advance(StoredState(done, stored.revision))
    return done


async def test_an_accepted_job_is_delivered_and_known(queue: JobQueue) -> None:
    sent = job()
    state = await queue.submit(sent)
    assert state.status is JobStatus.QUEUED
    assert await queue.state(sent.job_id) == state
    [msg] = await (await queue.subscribe()).fetch(1, timeout=2)
    assert Job.model_validate_json(msg.data) == sent
    await msg.ack_sync()


async def test_the_same_id_again_is_the_same_job(queue: JobQueue) -> None:
    sent = job()
    await queue.submit(sent)
    done = await finish(queue, JobState.queued(sent))
    assert await queue.submit(sent) == done
    subscription = await queue.subscribe()
    [msg] = await subscription.fetch(1, timeout=2)
    await msg.ack_sync()
    with pytest.raises(asyncio.TimeoutError):
        await subscription.fetch(1, timeout=0.3)


async def test_one_job_over_the_bound_is_refused(queue: JobQueue) -> None:
    for _ in range(MAX_PENDING):
        await queue.submit(job())
    refused = job()
    with pytest.raises(QueueFull):
        await queue.submit(refused)
    with pytest.raises(UnknownJob):
        await queue.state(refused.job_id)


async def test_a_queued_job_is_cancelled_at_once_and_stays_so(queue: JobQueue) -> None:
    sent = job()
    await queue.submit(sent)
    assert (await cancel(queue, sent.job_id)).status is JobStatus.CANCELLED
    taken = await queue.begin(sent)
    assert taken.state.status is JobStatus.CANCELLED
    assert (await cancel(queue, sent.job_id)).status is JobStatus.CANCELLED


async def test_of_two_changes_to_one_state_only_the_first_holds(queue: JobQueue) -> None:
    sent = job()
    await queue.submit(sent)
    stored = await queue.stored_state(sent.job_id)
    running = StoredState(stored.state.moved(JobStatus.RUNNING), stored.revision)
    cancelled = StoredState(stored.state.moved(JobStatus.CANCELLED), stored.revision)
    assert await queue.advance(running)
    assert await queue.advance(cancelled) is None
    assert (await queue.state(sent.job_id)).status is JobStatus.RUNNING


async def test_a_worker_that_is_faster_than_the_gateway_finds_a_state(queue: JobQueue) -> None:
    assert (await queue.begin(job())).state.status is JobStatus.QUEUED


async def test_a_listener_hears_its_job_to_the_end_and_no_other(queue: JobQueue) -> None:
    sent, other = job(), job()
    with queue.listen(sent.job_id) as events:
        await queue.submit(sent)
        await queue.publish(JobEvent(type="started", job_id=other.job_id))
        await queue.publish(JobEvent(type="progress", job_id=sent.job_id, phase="Sample", value=1, maximum=4))
        await queue.announce(await finish(queue, JobState.queued(sent)))
        heard = [event.type async for event in queue.follow(sent.job_id, events)]
    assert heard == ["progress", "done"]


async def test_an_end_is_heard_at_once_with_every_optional_field_empty(queue: JobQueue) -> None:
    # Events leave nulls out; one that cannot be read back would only be noticed by the poll, seconds later.
    sent = job().model_copy(update={"model": None})
    failed = JobState.queued(sent).moved(
        JobStatus.FAILED, error=ErrorBody(code="graph_rejected", message="no", details=[ErrorDetail(message="no")])
    )
    with queue.listen(sent.job_id) as events:
        await queue.announce(failed)
        event = await asyncio.wait_for(events.get(), timeout=1)
    assert event.state == failed


async def test_an_end_that_nobody_told_is_still_noticed(queue: JobQueue) -> None:
    sent = job()
    with queue.listen(sent.job_id) as events:
        await queue.submit(sent)
        await finish(queue, JobState.queued(sent))
        heard = [event async for event in queue.follow(sent.job_id, events)]
    assert [event.type for event in heard] == ["done"]
    assert heard[0].state


async def test_a_slow_listener_loses_its_oldest_events_only(queue: JobQueue) -> None:
    sent = job()
    with queue.listen(sent.job_id) as events:
        await queue.submit(sent)
        for step in range(400):
            await queue.publish(JobEvent(type="progress", job_id=sent.job_id, value=step, maximum=400))
        await queue.announce(await finish(queue, JobState.queued(sent)))
        await queue.nc.flush()
        heard = [event async for event in queue.follow(sent.job_id, events)]
    assert heard[-1].type == "done"
    assert heard[-2].value == 399


async def test_every_end_is_published_as_a_result_event(queue: JobQueue) -> None:
    results = await queue.nc.subscribe(queue.names.result)
    sent = job()
    await queue.submit(sent)
    await queue.announce(await finish(queue, JobState.queued(sent)))
    event = JobResultEvent.model_validate_json((await results.next_msg(timeout=2)).data)
    assert (event.job_id, event.status, event.parameters) == (sent.job_id, JobStatus.DONE, sent.parameters)
    assert event.generation_time_ms == 1000


async def test_an_image_comes_back_as_it_was_stored(queue: JobQueue) -> None:
    data = bytes(range(256)) * 3000  # More than one chunk of the object store.
    image = await queue.store_image(job().job_id, 0, "jpeg", data)
    assert image.size == len(data)
    assert image.name.endswith("/0.jpg")
    assert await queue.image(image) == data


async def test_without_a_server_the_error_says_so() -> None:
    with pytest.raises(Unavailable, match="no NATS server answers at nats://127.0.0.1:1"):
        await connect("nats://127.0.0.1:1", "test", patience_s=0.5)
