"""The consumer of a work queue, through which workers take jobs and gateways take webhooks, and its repair.

The NATS server keeps a consumer's position in a file of its own. After a crash or a damaged disk that file can be
unreadable, or tell of jobs that the stream does not have: then the server delivers nothing and reports nothing. The
work is in the stream, so a consumer that is made anew delivers it all; a job that ran before says so in its state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import ConsumerConfig
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from bridge.stopping import stop

log = logging.getLogger(__name__)

FETCH_S = 5.0
UNREADABLE_ERROR = 10012
"""The server cannot open the files of this consumer. It does not delete them either, so its name is lost."""
NOT_UNIQUE_ERROR = 10100
"""Another consumer serves the subject: one that replaced this name."""
NAMES = 8
"""The number of names that a consumer may lose."""


async def make(js: JetStreamContext, stream: str, config: ConsumerConfig) -> str:
    """Make a consumer that all processes share, or find it. Returns the name that it has. Raises what nats-py raises.

    One that has another subject, because an earlier version made it, gets this one; deliveries stay known.
    """
    assert config.durable_name is not None
    for durable in _names(config.durable_name):
        try:
            with contextlib.suppress(NotFoundError):
                known = await js.consumer_info(stream, durable)
                if known.config.filter_subject == config.filter_subject:
                    return durable
            await js.add_consumer(stream, config.evolve(durable_name=durable, name=durable))
            return durable
        except APIError as error:
            if error.err_code == UNREADABLE_ERROR:
                log.error("the files of the consumer %s are damaged; another takes over, and no job is lost", durable)
            elif error.err_code != NOT_UNIQUE_ERROR:
                raise
    description = f"the files of {config.durable_name} are damaged {NAMES} times"
    raise APIError(code=500, err_code=UNREADABLE_ERROR, description=description)


async def serve(
    js: JetStreamContext, stream: str, config: ConsumerConfig, take: Callable[[Msg], Awaitable[None]], *, at_once: int
) -> None:
    """Give the messages of a consumer to `take`, so many at once, until cancelled: a slow one does not block the rest.

    Raises what nats-py and `take` raise.
    """
    subscription = await js.pull_subscribe_bind(await make(js, stream, config), stream)

    # Not a TaskGroup: it cancels its tasks only once, and one that lost the cancellation would block it forever.
    lanes = [asyncio.create_task(_lane(subscription, take)) for _ in range(at_once)]
    try:
        ended, _ = await asyncio.wait(lanes, return_when=asyncio.FIRST_EXCEPTION)
        for one in ended:
            one.result()
    finally:
        await stop(lanes)


async def _lane(subscription: JetStreamContext.PullSubscription, take: Callable[[Msg], Awaitable[None]]) -> None:
    """Take one message after the other, beside other lanes."""
    while True:
        try:
            [msg] = await subscription.fetch(1, timeout=FETCH_S)
        except NatsTimeout:
            continue
        await take(msg)


def _names(name: str) -> list[str]:
    return [name, *(f"{name}-{number}" for number in range(2, NAMES + 1))]
