"""The JetStream streams of the service: their configuration, and how they are created."""

from __future__ import annotations

import logging

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, BadRequestError

from bridge.names import Names
from bridge.settings import Retention

log = logging.getLogger(__name__)

DEDUPLICATION_S = 3600.0
STREAM_CONFIG_ERROR = 10058
NO_SPACE_ERRORS = (10023, 10047, 10077)
"""Insufficient resources, storage resources exceeded, and a stream whose file could not be written."""
LEAST_BYTES = 16 * 1024**2
LEAST_AGE_S = 1.0
"""Servers refuse to keep messages for less than a tenth of a second."""


def queue_config(names: Names, max_pending: int) -> StreamConfig:
    """The queue of jobs that wait or run."""
    return StreamConfig(
        name=names.stream,
        subjects=[f"{names.jobs}.>", names.probe_jobs],
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
        # The broker enforces the bound, so it holds for any number of gateways.
        max_msgs=max_pending,
        discard=DiscardPolicy.NEW,
        duplicate_window=DEDUPLICATION_S,
    )


def callbacks_config(names: Names, retention: Retention) -> StreamConfig:
    """The queue of webhooks to send."""
    return StreamConfig(
        name=names.callbacks_stream,
        subjects=[names.callbacks, names.probe_callbacks],
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
        max_age=max(retention.jobs_s, LEAST_AGE_S),
        # The server refuses a window that is longer than messages are kept.
        duplicate_window=min(DEDUPLICATION_S, max(retention.jobs_s, LEAST_AGE_S)),
    )


def bucket_config(bucket: str, *, max_age_s: float, max_bytes: int) -> StreamConfig:
    """The stream of a key-value bucket, as nats-py makes it, except that a full bucket drops its oldest values.

    nats-py's own configuration refuses new values, so that no job could be accepted or ended any more.
    """
    return StreamConfig(
        name=f"KV_{bucket}",
        subjects=[f"$KV.{bucket}.>"],
        storage=StorageType.FILE,
        max_msgs_per_subject=1,
        max_age=max(max_age_s, LEAST_AGE_S),
        max_bytes=max_bytes,
        discard=DiscardPolicy.OLD,
        allow_direct=True,
        allow_rollup_hdrs=True,
        allow_msg_ttl=True,
        deny_delete=True,
    )


async def make_stream(js: JetStreamContext, config: StreamConfig) -> int:
    """Make a stream, or give an existing one this configuration. Returns the bytes that it may grow to; -1: any.

    The server reserves the maximum size of a stream. If the disk is too small, the stream gets half of it, or half of
    that, and so on: a service that keeps less is better than none. Raises what nats-py raises.
    """
    wanted = config.max_bytes
    while True:
        try:
            try:
                await js.add_stream(config)
            except BadRequestError as error:
                if error.err_code != STREAM_CONFIG_ERROR:
                    raise
                await js.update_stream(config)
            break
        except APIError as error:
            if error.err_code not in NO_SPACE_ERRORS or not config.max_bytes or config.max_bytes < 2 * LEAST_BYTES:
                raise
            config = config.evolve(max_bytes=config.max_bytes // 2)
    if config.max_bytes != wanted:
        log.warning("%s holds %d bytes, not %d: the NATS server's disk is small", config.name, config.max_bytes, wanted)
    return config.max_bytes or -1


def span(seconds: float) -> str:
    """A duration for people: `7 days`."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name if round(seconds / unit, 2) != 1 else name[:-1]}"
    return f"{seconds:.3g} seconds"
