"""The JetStream streams of the service: their configuration, and how they are created."""

from __future__ import annotations

import dataclasses
import logging

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, BadRequestError, NotFoundError

from bridge.names import Names
from bridge.settings import Retention

log = logging.getLogger(__name__)

DEDUPLICATION_S = 3600.0
STREAM_CONFIG_ERROR = 10058
STORE_ERROR = 10077
NO_SPACE_ERRORS = (10023, 10047, STORE_ERROR)
"""Insufficient resources, storage resources exceeded, and a stream whose file could not be written."""
LEAST_BYTES = 16 * 1024**2
SERVERS_WINDOW_S = 120.0
"""The deduplication window of a stream that asks for none."""
LEAST_AGE_S = 1.0
"""Servers refuse to keep messages for less than a tenth of a second."""


def is_at_its_bound(error: APIError) -> bool:
    """Whether a stream refuses a message because it holds as much as it may, rather than for a fault of the disk."""
    text = error.description or ""
    return error.err_code == STORE_ERROR and ("maximum messages" in text or "maximum bytes" in text)


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


def bucket_config(bucket: str, *, max_age_s: float | None, max_bytes: int) -> StreamConfig:
    """The stream of a key-value bucket, as nats-py makes it, except that a full bucket drops its oldest values.

    nats-py's own configuration refuses new values, so that no job could be accepted or ended any more. Without
    `max_age_s` values are kept for good.
    """
    max_age = 0.0 if max_age_s is None else max(max_age_s, LEAST_AGE_S)
    return StreamConfig(
        name=f"KV_{bucket}",
        subjects=[f"$KV.{bucket}.>"],
        storage=StorageType.FILE,
        max_msgs_per_subject=1,
        max_age=max_age,
        # Said, because a shorter age with the window that the stream had before is refused.
        duplicate_window=min(SERVERS_WINDOW_S, max_age or SERVERS_WINDOW_S),
        max_bytes=max_bytes,
        discard=DiscardPolicy.OLD,
        allow_direct=True,
        allow_rollup_hdrs=True,
        allow_msg_ttl=True,
        deny_delete=True,
    )


async def make_stream(js: JetStreamContext, config: StreamConfig) -> int:
    """Make a stream, or give an existing one this configuration. Returns the bytes that it may grow to; -1: any.

    Nothing that an existing stream holds is discarded: its bounds never go below that. Raises what nats-py raises.
    """
    try:
        info = await js.stream_info(config.name or "")
    except NotFoundError:
        try:
            return await _create(js, config)
        except BadRequestError as error:
            if error.err_code != STREAM_CONFIG_ERROR:
                raise
            info = await js.stream_info(config.name or "")  # Another process has just made it, with other bounds.
    return await _update(js, config, info)


async def _create(js: JetStreamContext, config: StreamConfig) -> int:
    """Create a stream. Returns the bytes that it may grow to.

    The server reserves the maximum size of a stream. If the disk is too small, the stream gets half of it, or half of
    that, and so on: a service that keeps less is better than none.
    """
    wanted = config.max_bytes
    while True:
        try:
            await js.add_stream(config)
            break
        except APIError as error:
            if error.err_code not in NO_SPACE_ERRORS or not config.max_bytes or config.max_bytes < 2 * LEAST_BYTES:
                raise
            config = config.evolve(max_bytes=config.max_bytes // 2)
    if config.max_bytes != wanted:
        log.warning("%s holds %d bytes, not %d: the NATS server's disk is small", config.name, config.max_bytes, wanted)
    return config.max_bytes or -1


async def _update(js: JetStreamContext, config: StreamConfig, info: StreamInfo) -> int:
    """Give an existing stream this configuration. Returns the bytes that it may grow to.

    The server discards what exceeds the bounds of an update, and it reserves the difference to a larger size. So the
    bounds stay above what the stream holds, and without space for a larger size it keeps its own. What the
    configuration leaves open, such as replicas, stays as an operator has set it.
    """
    held, has = info.state, info.config
    if config.max_bytes and 0 < config.max_bytes < held.bytes:
        log.warning("%s holds %d bytes already, so it is not limited to %d", config.name, held.bytes, config.max_bytes)
        config = config.evolve(max_bytes=held.bytes)
    if config.max_msgs and 0 < config.max_msgs < held.messages:
        log.warning(
            "%s holds %d items already, so it is not limited to %d", config.name, held.messages, config.max_msgs
        )
        config = config.evolve(max_msgs=held.messages)
    wanted = _merged(config, has)
    if wanted != has:
        try:
            await js.update_stream(wanted)
        except APIError as error:
            if error.err_code not in NO_SPACE_ERRORS:
                raise
            log.warning("%s keeps its size: the NATS server's disk is too small for more", config.name)
            wanted = wanted.evolve(max_bytes=has.max_bytes)
            if wanted != has:
                await js.update_stream(wanted)
    return wanted.max_bytes or -1


def _merged(config: StreamConfig, has: StreamConfig) -> StreamConfig:
    """What the stream has, with what the configuration sets: None and False stand for what it leaves open."""
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    return has.evolve(**{name: value for name, value in values.items() if value is not None and value is not False})


def span(seconds: float) -> str:
    """A duration for people: `7 days`."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name if round(seconds / unit, 2) != 1 else name[:-1]}"
    return f"{seconds:.3g} seconds"
