"""The consumer of a work queue, through which workers take jobs and gateways take webhooks, and its repair.

The NATS server keeps a consumer's position in a file of its own. After a crash or a damaged disk that file can be
unreadable, or tell of jobs that the stream does not have: then the server delivers nothing and reports nothing. The
work is in the stream, so a consumer that is made anew delivers it all; a job that ran before says so in its state.
"""

from __future__ import annotations

import logging

from nats.js.api import ConsumerConfig
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NotFoundError

log = logging.getLogger(__name__)

ACK_WAIT_S = 15.0
"""A worker that is silent for this long counts as dead, and its job goes to another."""
UNREADABLE_ERROR = 10012
"""The server cannot open the files of this consumer. It does not delete them either, so its name is lost."""
NOT_UNIQUE_ERROR = 10100
"""Another consumer serves the subject: one that replaced this name."""
NAMES = 8
"""The number of names that a consumer may lose."""


async def subscribe(
    js: JetStreamContext, stream: str, name: str, subject: str, *, ack_wait_s: float = ACK_WAIT_S
) -> JetStreamContext.PullSubscription:
    """Subscribe to the work of a stream with a consumer that all processes share. Raises what nats-py raises."""
    for durable in _names(name):
        # Who takes the work bounds its deliveries: the broker would drop it silently.
        config = ConsumerConfig(ack_wait=ack_wait_s, max_deliver=-1)
        try:
            return await js.pull_subscribe(subject, durable=durable, stream=stream, config=config)
        except APIError as error:
            if error.err_code == UNREADABLE_ERROR:
                log.error("the files of the consumer %s are damaged; another takes over, and no job is lost", durable)
            elif error.err_code != NOT_UNIQUE_ERROR:
                raise
    raise APIError(code=500, err_code=UNREADABLE_ERROR, description=f"the files of {name} are damaged {NAMES} times")


async def repair(js: JetStreamContext, stream: str, name: str) -> bool:
    """Delete a consumer that does not deliver what the stream holds; True if it was deleted.

    In a work queue each message is either waiting or with a worker, so a stream that holds more than both together has
    a consumer with a wrong position. Call this only when nothing has been delivered for a while: the numbers come from
    several answers. Raises what nats-py raises.
    """
    for durable in _names(name):
        try:
            info = await js.consumer_info(stream, durable)
        except NotFoundError:
            continue
        held = (await js.stream_info(stream)).state.messages
        if held <= (info.num_pending or 0) + (info.num_ack_pending or 0):
            return False
        log.error("the consumer %s does not deliver what the queue holds; it is made anew, and no job is lost", durable)
        await js.delete_consumer(stream, durable)
        return True
    return False


def _names(name: str) -> list[str]:
    return [name, *(f"{name}-{number}" for number in range(2, NAMES + 1))]
