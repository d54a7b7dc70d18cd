"""Messages of every size around the server's limit: refused with that cause and nothing written, or delivered whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from nats.aio.client import Client

from bridge.broker.jobs import JobQueue, StoredState
from bridge.broker.nats_client import MessageTooLarge
from bridge.broker.sizes import GROWTH_BYTES
from bridge.contract import (
    BodyTooLarge,
    ErrorBody,
    ErrorDetail,
    ImageGenResponse,
    ImageObject,
    Job,
    JobEvent,
    JobKind,
    JobState,
    JobStatus,
)

MAX_PAYLOAD = 1024 * 1024


def job(**parameters: Any) -> Job:
    return Job(job_id=str(uuid4()), kind=JobKind.GENERATE, mode="paint", parameters=parameters, submitted_at=1.5)


async def queued_jobs(queue: JobQueue) -> int:
    return (await queue.nc.jetstream().stream_info(queue.names.stream)).state.messages


CHARACTERS = {"ascii": "a", "two bytes": "é", "four bytes": "🎨", "escaped": '"', "control": "\x01", "line": "\n"}
AROUND = (-100_000, -68_000, -66_000, -3000, -400, -100, -1, 0, 1, 100, 400, 3000, 66_000)
"""Distances from max_payload, in bytes of the job as JSON."""


@pytest.mark.parametrize("distance", AROUND)
@pytest.mark.parametrize("character", CHARACTERS.values(), ids=CHARACTERS)
async def test_a_job_near_the_limit_is_queued_whole_or_refused_with_nothing_written(
    queue: JobQueue, character: str, distance: int
) -> None:
    empty = len(job(prompts="").model_dump_json().encode())
    each = len(job(prompts=character).model_dump_json().encode()) - empty
    sent = job(prompts=character * ((MAX_PAYLOAD + distance - empty) // each))
    before = await queued_jobs(queue)
    if distance < -GROWTH_BYTES - 2000:
        await queue.submit(sent)
        assert await queued_jobs(queue) == before + 1
        state = await queue.stored_state(sent.job_id)
        running = state.state.moved(JobStatus.RUNNING, started_at=time.time(), attempts=1, worker="w" * 64)
        assert await queue.advance(StoredState(running, state.revision))
        await _end(queue, sent.job_id, error=ErrorBody(code="node_failed", message="x" * 50_000))
    else:
        with pytest.raises(BodyTooLarge, match=f"max_payload of the NATS server .{MAX_PAYLOAD}"):
            await queue.submit(sent)
        assert await queued_jobs(queue) == before
    assert (await queue.submit(job(prompt="a cat"))).status is JobStatus.QUEUED  # All goes on, on the same connection.


async def _end(queue: JobQueue, job_id: str, **changes: Any) -> JobState:
    stored = await queue.stored_state(job_id)
    failed = stored.state.moved(JobStatus.FAILED, finished_at=time.time(), **changes)
    written = await queue.advance(StoredState(failed, stored.revision))
    assert written
    await queue.announce(written.state)
    return written.state


def image(index: int) -> ImageObject:
    return ImageObject(bucket="b", name=f"{uuid4()}/{index}.png", size=1000, digest="SHA-256=" + "x" * 44)


ENDS: dict[str, tuple[dict[str, Any], Callable[[JobState], bool]]] = {
    "a long error": (
        {"error": ErrorBody(code="node_failed", message="é" * 900_000)},
        lambda state: bool(state.error and state.error.message.startswith("éé") and "900000" in state.error.message),
    ),
    "many details": (
        {
            "error": ErrorBody(
                code="graph_rejected",
                message="no",
                details=[ErrorDetail(field=None, message="x" * 900) for _ in range(2000)],
            )
        },
        lambda state: bool(state.error and state.error.code == "graph_rejected"),
    ),
    "many warnings": (
        {"warnings": ["w" * 900] * 2000},
        lambda state: len(state.warnings) == 21 and "1980 more" in state.warnings[-1],
    ),
    "a thousand images": ({"images": [image(i) for i in range(1000)]}, lambda state: len(state.images) == 1000),
    "ten thousand images": (
        {"images": [image(i) for i in range(10_000)]},
        lambda state: bool(state.error and state.error.code == "result_too_large" and "10000" in state.error.message),
    ),
    "a loaded model that talks": (
        {"loaded": {"text": "x" * 2_000_000}},
        lambda state: bool(state.error and state.error.code == "result_too_large"),
    ),
}


@pytest.mark.parametrize("kind", ENDS)
async def test_an_end_of_any_size_is_written_and_announced(queue: JobQueue, kind: str) -> None:
    changes, expected = ENDS[kind]
    sent = job(prompt="a cat")
    await queue.submit(sent)
    with queue.listen(sent.job_id) as events:
        written = await _end(queue, sent.job_id, **changes)
        assert expected(written)
        assert await queue.state(sent.job_id) == written
        assert (await events.get()).final


async def test_a_job_that_leaves_no_space_for_its_end_still_ends(queue: JobQueue) -> None:
    # A version that reserved nothing has queued it.
    empty = len(JobState.queued(job(prompts="")).model_dump_json().encode())
    state = JobState.queued(job(prompts="x" * (MAX_PAYLOAD - empty - 200)))  # The bucket adds headers.
    nc = queue.nc.jetstream()
    kv = await nc.key_value(queue.names.states)
    revision = await kv.create(state.job_id, state.model_dump_json().encode())
    ended = state.moved(JobStatus.FAILED, error=ErrorBody(code="x", message="y" * 2000), finished_at=time.time())
    assert await queue.advance(StoredState(ended, revision))
    assert (await queue.state(state.job_id)).status is JobStatus.FAILED


async def test_a_preview_that_is_too_large_is_left_out_and_the_next_event_comes(queue: JobQueue) -> None:
    sent = job(prompt="a cat")
    with queue.listen(sent.job_id, previews=True) as events:
        await queue.publish(JobEvent(type="preview", job_id=sent.job_id, image_b64="x" * 2_000_000, mime="image/png"))
        await queue.publish(JobEvent(type="progress", job_id=sent.job_id, phase="p" * 2_000_000, value=1, maximum=2))
        await queue.publish(JobEvent(type="started", job_id=sent.job_id))
        assert (await events.get()).type == "started"


@pytest.mark.parametrize(
    ("payload", "headers"),
    [
        (b"x" * (MAX_PAYLOAD + 1), None),
        (b"x" * MAX_PAYLOAD, {"A": "b"}),
        (b"x" * (MAX_PAYLOAD - 17), {"A": "b"}),
        (b"", {"A": "é" * (MAX_PAYLOAD // 2)}),
        (b"", {f"A{n}": "x" * 1000 for n in range(1100)}),
    ],
)
async def test_nothing_goes_out_that_the_server_would_refuse(
    nc: Client, payload: bytes, headers: dict[str, str] | None
) -> None:
    with pytest.raises(MessageTooLarge, match="max_payload"):
        await nc.publish("somewhere", payload, headers=headers)
    await nc.flush()
    assert nc.is_connected
    assert nc.stats["reconnects"] == 0


async def test_the_largest_message_with_headers_goes_out(nc: Client) -> None:
    subscription = await nc.subscribe("largest")
    await nc.publish("largest", b"x" * (MAX_PAYLOAD - 18), headers={"A": "b"})
    assert len((await subscription.next_msg(5)).data) == MAX_PAYLOAD - 18
    assert nc.stats["reconnects"] == 0


@pytest.mark.parametrize("names", [["0.png"], ["0.json", "1.png"], ["0.png", "1.png", "2.mp4"], ["0.zip"]])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 500_001])
def test_the_size_of_a_reply_is_known_to_the_byte(names: list[str], size: int) -> None:
    images = [
        ImageObject(bucket="b", name=f"j/{name}", size=size + 7 * index, digest="SHA-256=x")
        for index, name in enumerate(names)
    ]
    state = JobState.queued(job(prompt="é\n")).moved(JobStatus.DONE, images=images, image_format="png")
    encoded = ["x" * ((image.size + 2) // 3 * 4) for image in images]
    real = len(ImageGenResponse.of(state, encoded).model_dump_json().encode())
    assert real <= ImageGenResponse.inline_bytes(state) <= real + 8
