"""Damage in the files of a nats-server, as far as the server itself neither heals nor reports it.

nats-server restores a stream from its messages when an index or a configuration is damaged. A consumer whose state file
is damaged it does not load, and cannot create again either, as long as the file is there: no job is delivered any more.
A consumer holds nothing that the stream does not: without it, jobs that were being worked on are delivered once more.
"""

from __future__ import annotations

import glob
import time
from pathlib import Path

from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from bridge.broker.connection import BROKER_ERRORS, connect
from bridge.contract import BridgeError
from bridge.settings import Settings

PATIENCE_S = 15.0


async def damaged_consumers(js: JetStreamContext, store: Path) -> list[Path]:
    """The folders of the consumers that a server, which runs on `store`, has not loaded. Raises what nats-py raises."""
    damaged: list[Path] = []
    for folder in sorted(glob.glob("jetstream/*/streams/*/obs/*", root_dir=store)):
        path = store / folder
        stream = path.parts[-3]
        try:
            await js.stream_info(stream)
        except NotFoundError:
            continue  # The whole stream is missing; the next process that opens it brings back its messages.
        try:
            await js.consumer_info(stream, path.name)
        except NotFoundError:
            damaged.append(path)
    return damaged


async def find_damaged(settings: Settings, nats_url: str) -> list[Path]:
    """The damaged consumers of the service's own nats-server; none if that cannot be found out."""
    try:
        nc = await connect(nats_url, "imagegen-supervisor", access=settings.nats_access, patience_s=PATIENCE_S)
    except BridgeError:
        return []  # The processes that need the server will say it.
    try:
        return await damaged_consumers(nc.jetstream(), settings.nats_store)
    except BROKER_ERRORS:
        return []
    finally:
        await nc.close()


def set_aside(settings: Settings, path: Path) -> Path:
    """Move something damaged out of the way, where it can still be looked at. Returns its new place."""
    place = settings.state_dir / "damaged" / f"{time.strftime('%Y%m%d-%H%M%S')}-{path.name}"
    place.parent.mkdir(exist_ok=True, mode=0o700)
    number = 1
    while place.exists():
        number += 1
        place = place.with_name(f"{place.name.split('~')[0]}~{number}")
    return path.rename(place)
