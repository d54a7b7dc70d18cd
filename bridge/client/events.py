"""The events of a job: followed through restarts of the service, or heard beside a request that is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from urllib.parse import quote

import aiohttp
from pydantic import ValidationError

from bridge.client.errors import ClientError, ServiceUnreachable
from bridge.client.transport import Transport
from bridge.contract import JobEvent, JobState, read_answer

RECONNECT_S = 0.5
RECONNECT_PATIENCE_S = 60.0
"""How long to wait for a service that went away. The job goes on meanwhile, or waits too."""
PASSING = (429, 500, 502, 504)
SILENCE_S = 10.0
"""How long an event stream may say nothing before the state of the job is read beside it."""
LAST_EVENT_S = 2.0
"""How long the final event may take to arrive after the answer."""
_log = logging.getLogger(__name__)


async def follow(transport: Transport, job_id: str, *, previews: bool, patience_s: float) -> AsyncIterator[JobEvent]:
    """The events of a job, from its present state to the final one.

    A broken connection is opened again; the new one starts with the present state. Raises ClientError where the job
    does not exist, and ServiceUnreachable where the service stays away for longer than `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(ServiceUnreachable):
            socket = await transport.open_events(job_id, previews=previews)
            heard = _heard(socket, transport, job_id)
            try:
                async for event in heard:
                    deadline = time.monotonic() + patience_s
                    yield event
                    if event.final:
                        return
            finally:
                await heard.aclose()
                await socket.close()
        try:
            state = await _state(transport, job_id)
            if state.status.final:  # also where something on the way lets no WebSocket through
                yield JobEvent(type="state", job_id=job_id, state=state)
                return
            deadline = time.monotonic() + patience_s
        except ClientError as error:
            if not _passes(error) or time.monotonic() >= deadline:
                raise
        await asyncio.sleep(RECONNECT_S)


async def _heard(
    socket: aiohttp.ClientWebSocketResponse, transport: Transport, job_id: str
) -> AsyncGenerator[JobEvent, None]:
    """The events of a socket, until it ends, falls silent for good, or says that there is no such job.

    While it is silent, the state of the job is read: something on the way may answer pings and let no event through.
    """
    events = _events(socket)
    coming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=SILENCE_S)
            if done:
                event = coming.result()
                if event is None or event.type == "unknown":
                    return
                yield event
                coming = asyncio.ensure_future(anext(events, None))
                continue
            try:
                state = await _state(transport, job_id)
            except ClientError as error:
                if not _passes(error):
                    raise
                continue
            if state.status.final:
                yield JobEvent(type="state", job_id=job_id, state=state)
                return
    finally:
        coming.cancel()
        await asyncio.wait({coming})


def _passes(error: ClientError) -> bool:
    """Whether a job may still be followed after this: the service is away or busy, or a proxy before it failed."""
    return error.temporary or error.status in PASSING


async def _state(transport: Transport, job_id: str) -> JobState:
    return await transport.ask(JobState, "GET", f"/v1/jobs/{quote(job_id, safe='')}")


@contextlib.asynccontextmanager
async def listening(
    transport: Transport, job_id: str, on_event: Callable[[JobEvent], object] | None
) -> AsyncIterator[None]:
    """Call `on_event` with what happens to a job while the block runs, from before the job exists to its end.

    Events are an extra: where the stream is refused, the request in the block reports why. What `on_event` raises is
    raised at the end of the block.
    """
    socket = None
    if on_event is not None:
        with contextlib.suppress(ServiceUnreachable):
            socket = await transport.open_events(job_id, previews=True)
    if socket is None or on_event is None:
        yield
        return
    reader = asyncio.create_task(_report(socket, on_event))
    try:
        yield
        await asyncio.wait({reader}, timeout=LAST_EVENT_S)
    finally:
        reader.cancel()
        await asyncio.wait({reader})
        await socket.close()
    if not reader.cancelled():
        reader.result()


async def _report(socket: aiohttp.ClientWebSocketResponse, on_event: Callable[[JobEvent], object]) -> None:
    async for event in _events(socket):
        if event.type == "unknown":
            continue  # The request that makes the job is on its way.
        on_event(event)
        if event.final:
            return


async def _events(socket: aiohttp.ClientWebSocketResponse) -> AsyncGenerator[JobEvent, None]:
    """What arrives, until the connection ends, however it ends."""
    with contextlib.suppress(aiohttp.ClientError, OSError):
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            try:
                event = read_answer(JobEvent, message.data)
            except ValidationError:
                _log.debug("an event of a newer service was left out: %.200s", message.data)
                continue
            yield event
