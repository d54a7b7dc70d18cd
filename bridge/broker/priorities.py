"""Taking jobs from the queue by their priority.

Each priority has a consumer of its own on the one stream, with subjects that no other has, as a work queue demands.
Jobs of normal priority have the subject and the consumer that all jobs had before there were priorities: what an older
version has queued is taken, and older workers and gateways go on beside newer ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import ConsumerConfig
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from bridge.broker import consumer
from bridge.broker.connection import BROKER_ERRORS
from bridge.contract import PRIORITIES, Job, Priority
from bridge.names import Names

ACK_WAIT_S = 15.0
"""A worker that is silent for this long counts as dead, and its job goes to another."""
ASK_TIMEOUT_S = 2.0
LATE_S = 0.5
"""How much later than a pull expires the server may say so."""
TURNS: tuple[tuple[Priority, ...], ...] = (
    *[PRIORITIES] * 3,
    ("normal", "high", "low"),
    *[PRIORITIES] * 3,
    ("low", "normal", "high"),
)
"""Which priority a worker looks at first, job by job: of eight jobs at least one is low and one normal, if such wait.
So none starves, however many jobs of high priority arrive."""
API_PREFIX = "$JS.API"
NO_MESSAGE = ("404", "408")
"""Statuses of a pull: no message now, none until it expired."""


def subject_of(names: Names, job: Job) -> str:
    """The subject that a job is queued under."""
    return f"{names.jobs}.{job.kind}" if job.priority == "normal" else f"{names.jobs}.{job.priority}.{job.kind}"


def consumer_of(names: Names, priority: Priority) -> str:
    """The consumer that delivers the jobs of a priority."""
    return names.consumer if priority == "normal" else f"{names.consumer}-{priority}"


def consumer_config(names: Names, priority: Priority) -> ConsumerConfig:
    """The consumer's configuration. The worker bounds deliveries itself: the broker would drop the job silently."""
    return ConsumerConfig(
        durable_name=consumer_of(names, priority),
        filter_subject=f"{names.jobs}.*" if priority == "normal" else f"{names.jobs}.{priority}.*",
        ack_wait=ACK_WAIT_S,
        max_deliver=-1,
    )


async def make_consumers(js: JetStreamContext, names: Names) -> dict[Priority, str]:
    """Create the consumers that are missing, and narrow the one of a version without priorities.

    Returns their names. Raises what nats-py raises.
    """
    # The normal one first: it took every subject, and the others may not overlap with it.
    order: tuple[Priority, ...] = ("normal", "high", "low")
    return {priority: await consumer.make(js, names.stream, consumer_config(names, priority)) for priority in order}


class Turns:
    """Whose turn it is, for all slots of one worker. It begins anew whenever no job waits."""

    def __init__(self) -> None:
        self._taken = 0

    @property
    def order(self) -> tuple[Priority, ...]:
        """The priorities, in the order in which to look for the next job."""
        return TURNS[self._taken % len(TURNS)]

    def took(self) -> None:
        """A job was taken."""
        self._taken += 1

    def found_none(self) -> None:
        """No job waited."""
        self._taken = 0


class JobSubscription:
    """Takes jobs for one slot of a worker. `turns` is shared by the slots. While `closed` is set, nothing is waited
    for: a job that comes then stays in the queue, in its place."""

    def __init__(
        self,
        nc: Client,
        stream: str,
        consumers: Mapping[Priority, str],
        turns: Turns,
        closed: asyncio.Event | None = None,
    ) -> None:
        self._nc = nc
        self._stream = stream
        self._consumers = consumers
        self._turns = turns
        self._closed = closed or asyncio.Event()
        self._ending: set[asyncio.Task[None]] = set()
        self._found_none = False
        """The last wait was in vain. The next one begins at once: if a job came meanwhile, it is delivered all the
        same, and an idle worker asks half as often."""

    async def fetch(self, batch: int = 1, timeout: float = 5.0) -> list[Msg]:
        """The next job, by priority. Raises nats' TimeoutError if none comes in `timeout` seconds, and its other
        errors."""
        assert batch == 1, "one job at a time"
        for priority in () if self._found_none else self._turns.order:
            if (msg := await self._ask(priority)) is not None:
                self._turns.took()
                return [msg]
        self._turns.found_none()
        self._found_none = False
        msg = await self._wait(timeout)
        self._turns.took()
        return [msg]

    async def _ask(self, priority: Priority) -> Msg | None:
        """A job that waits now."""
        question = json.dumps({"batch": 1, "no_wait": True}).encode()
        # Old style: an inbox of its own. The job comes with the subject that it is stored under, by which nats-py's
        # shared inbox does not find the request.
        msg = await self._nc.request(self._subject(priority), question, timeout=ASK_TIMEOUT_S, old_style=True)
        return None if _nothing(msg) else msg

    async def _wait(self, timeout_s: float) -> Msg:
        """The first job that comes, of any priority."""
        first: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        open_pulls = len(PRIORITIES)

        async def take(msg: Msg) -> None:
            nonlocal open_pulls
            if _nothing(msg, expected=first.done()):
                open_pulls -= 1
                if not open_pulls and not first.done():
                    first.set_exception(NatsTimeout())
            elif first.done():
                await msg.nak()  # Two came at once; the other goes to the next worker.
            else:
                first.set_result(msg)

        async def guarded(msg: Msg) -> None:
            try:
                await take(msg)
            except BROKER_ERRORS as error:
                if not first.done():
                    first.set_exception(error)

        inbox = self._nc.new_inbox()
        subscription = await self._nc.subscribe(inbox, cb=guarded)
        question = json.dumps({"batch": 1, "expires": int(timeout_s * 1e9)}).encode()
        closing = asyncio.create_task(self._closed.wait())
        try:
            for priority in PRIORITIES:
                await self._nc.publish(self._subject(priority), question, reply=inbox)
            await asyncio.wait({first, closing}, timeout=timeout_s + LATE_S, return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                first.set_exception(NatsTimeout())
            self._found_none = isinstance(first.exception(), NatsTimeout) and not closing.done()
            return first.result()
        finally:
            closing.cancel()
            first.cancel()  # Whatever comes now is given back.
            ending = asyncio.create_task(self._end(subscription))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _end(self, subscription: Subscription) -> None:
        """End the other pulls: without interest in their inbox the server forgets them."""
        with contextlib.suppress(*BROKER_ERRORS):
            if self._nc.is_connected:
                await subscription.drain()  # Unlike `unsubscribe`, it still hands over what is on its way.
            else:
                await subscription.unsubscribe()

    def _subject(self, priority: Priority) -> str:
        return f"{API_PREFIX}.CONSUMER.MSG.NEXT.{self._stream}.{self._consumers[priority]}"


def _nothing(msg: Msg, *, expected: bool = False) -> bool:
    """Whether a pull was answered without a job. Raises nats' NotFoundError for a consumer that is gone."""
    status = (msg.headers or {}).get("Status")
    if status is None:
        return False
    if status in NO_MESSAGE or expected:
        return True
    raise NotFoundError(code=int(status), description=(msg.headers or {}).get("Description", ""))
