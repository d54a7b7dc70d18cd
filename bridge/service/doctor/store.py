"""The NATS store: streams, consumers and stored jobs.

The server that runs is asked; if none runs, one is started for the check.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nats.aio.client import Client
from nats.js.api import StreamState
from nats.js.errors import NotFoundError
from pydantic import ValidationError

from bridge.broker.connection import BROKER_ERRORS, connect
from bridge.broker.probe import StoreProbe, writes_of
from bridge.contract import BridgeError, ErrorBody, Job, JobState, JobStatus
from bridge.disk import size
from bridge.service.children.child import ChildProcess
from bridge.service.children.comfyui import free_port
from bridge.service.doctor.findings import Report
from bridge.service.nats import damaged_consumers, nats_server_program, set_aside
from bridge.service.status import Status
from bridge.settings import Access, Settings

START_S = 20.0
LOST = "this job was accepted, but the queue lost it when its files were damaged; send it again"


async def check_store(report: Report, settings: Settings, status: Status) -> None:
    """Check what JetStream holds."""
    if settings.nats_url is None and status.nats_url is None and not any(settings.nats_store.glob("jetstream/*")):
        report.ok("NATS has stored nothing yet")
        return
    if status.running and status.nats_url is None and settings.nats_url is None:
        report.note("NATS is not checked while the service starts")
        return
    own = settings.nats_url is None
    try:
        if own and status.nats_url is None:
            async with _server(settings) as url:
                damaged = await _consumers(report, settings, url)
            for folder in damaged:
                place = set_aside(settings, folder)
                report.repaired(f"{folder} is made anew by the next start; what was there is {place}")
            async with _server(settings) as url:
                await _check(report, settings, url, Access(), own=True)
        else:
            url = settings.nats_url or status.nats_url or ""
            await _check(report, settings, url, _access(settings), own=own)
    except BridgeError as error:
        report.problem("NATS does not answer", error.message)
    except (*BROKER_ERRORS, RuntimeError) as error:
        report.problem("NATS cannot be checked", f"{error or type(error).__name__}")


def _access(settings: Settings) -> Access:
    """How to log in: as the settings say, or with the token of the service that runs."""
    with contextlib.suppress(OSError):
        if settings.nats_url is None:
            return Access(token=settings.nats_token_file.read_text(encoding="utf-8").strip())
    return settings.nats_access


@asynccontextmanager
async def _server(settings: Settings) -> AsyncIterator[str]:
    """A server on the store of a service that does not run, for as long as the check takes."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="imagegen-doctor-") as scratch:
        config = Path(scratch) / "nats.conf"
        jetstream = {"store_dir": str(settings.nats_store)}
        config.write_text(json.dumps({"host": "127.0.0.1", "port": port, "jetstream": jetstream}))
        child = ChildProcess(
            "nats", [nats_server_program(), "-c", str(config)], log_file=Path(scratch) / "nats.log", env={}
        )
        await child.start()
        try:
            deadline = time.monotonic() + START_S
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                except OSError:
                    if child.returncode is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"nats-server does not start on it: {child.log_tail(2)}") from None
                await asyncio.sleep(0.05)
            yield f"nats://127.0.0.1:{port}"
        finally:
            await child.stop()


async def _consumers(report: Report, settings: Settings, url: str) -> list[Path]:
    """The damaged consumers that may be repaired."""
    nc = await connect(url, "imagegen-doctor")
    try:
        damaged = await damaged_consumers(nc.jetstream(), settings.nats_store)
        return [folder for folder in damaged if report.mendable(f"NATS cannot read {folder}: no job would be run")]
    finally:
        await nc.close()


async def _check(report: Report, settings: Settings, url: str, access: Access, *, own: bool) -> None:
    nc = await connect(url, "imagegen-doctor", access=access)
    try:
        js, names = nc.jetstream(), settings.names
        facts: dict[str, str] = {}
        states: dict[str, StreamState] = {}
        for stream in dict.fromkeys(write.stream for write in writes_of(names)):
            try:
                states[stream] = (await js.stream_info(stream)).state
                facts[stream] = f"{states[stream].messages} messages, {size(states[stream].bytes)}"
            except NotFoundError:
                facts[stream] = "not there"
        report.facts["NATS"] = facts
        missing = [stream for stream in states_expected(settings, own) if stream not in states]
        if missing:
            report.note(f"NATS does not load {', '.join(missing)}; the next start brings back what can be read")
        await StoreProbe(lambda: nc, names).check()
        report.ok("NATS stores")
        if names.stream in states and f"KV_{names.states}" in states:
            await _check_jobs(report, settings, nc, states)
    finally:
        await nc.close()


def states_expected(settings: Settings, own: bool) -> list[str]:
    """The streams whose files are there."""
    if not own:
        return []
    known = {write.stream for write in writes_of(settings.names)}
    return sorted({path.name for path in settings.nats_store.glob("jetstream/*/streams/*")} & known)


async def _check_jobs(report: Report, settings: Settings, nc: Client, streams: dict[str, StreamState]) -> None:
    """Compare the queue with the states of the jobs."""
    js, names = nc.jetstream(), settings.names
    queued: set[str] = set()
    unreadable = 0
    async for sequence, _, data in _messages(nc, names.stream, streams[names.stream], f"{names.jobs}.>"):
        try:
            queued.add(Job.model_validate_json(data).job_id)
        except ValidationError:
            unreadable += 1
            if report.mendable(f"an item of the queue cannot be read (number {sequence})"):
                await js.delete_msg(names.stream, sequence)
                report.repaired(f"item {sequence} is removed from the queue")
    bucket = f"KV_{names.states}"
    states = await js.key_value(names.states)
    lost: list[tuple[JobState, int]] = []
    async for sequence, subject, data in _messages(nc, bucket, streams[bucket], f"$KV.{names.states}.>"):
        if not data:
            continue  # The mark of a deletion.
        key = subject.rpartition(".")[2]
        try:
            state = JobState.model_validate_json(data)
        except ValidationError:
            unreadable += 1
            if report.mendable(f"the state of job {key} cannot be read"):
                await states.purge(key)
                report.repaired(f"the state of job {key} is removed")
            continue
        if not state.status.final and state.job_id not in queued:
            lost.append((state, sequence))
    # A job that was submitted just now may have a state and no place in the queue yet, and the other way round.
    young = time.time() - 60
    for state, revision in lost:
        if state.submitted_at > young:
            continue
        if report.mendable(f"job {state.job_id} is {state.status}, but the queue does not hold it"):
            ended = state.moved(JobStatus.FAILED, error=ErrorBody(code="lost", message=LOST), finished_at=time.time())
            await states.update(state.job_id, ended.model_dump_json().encode(), last=revision)
            report.repaired(f"job {state.job_id} has failed, with that cause")
    if not unreadable and not lost:
        report.ok("queue and states of the jobs agree")


async def _messages(nc: Client, stream: str, state: StreamState, subject: str) -> AsyncIterator[tuple[int, str, bytes]]:
    """Every message of a stream: number, subject, content."""
    js, sequence = nc.jetstream(), max(1, state.first_seq)
    while sequence <= state.last_seq:
        try:
            msg = await js.get_msg(stream, seq=sequence, subject=subject, next=True)
        except NotFoundError:
            return
        assert msg.seq is not None
        yield msg.seq, msg.subject or "", b"" if (msg.headers or {}).get("KV-Operation") else msg.data or b""
        sequence = msg.seq + 1
