"""Pausing the queue of an installation: a key in a bucket, so that a pause outlives every process.

Whoever changes the key says so over core NATS. That message is a hint: every process reads the key now and then anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Self

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import StreamConfig
from nats.js.errors import KeyNotFoundError
from nats.js.kv import KeyValue
from pydantic import ValidationError

from bridge.broker.connection import BROKER_ERRORS, broker_errors
from bridge.broker.stores import bucket_config, make_stream
from bridge.contract import Pause, Unavailable, read_answer
from bridge.names import Names

log = logging.getLogger(__name__)

KEY = "pause"
MAX_BYTES = 1024**2
READ_S = 5.0
"""How often the key is read, for a message that was lost."""
KEEP_ALIVE_S = 4.0


def _bucket(names: Names) -> StreamConfig:
    return bucket_config(names.control, max_age_s=None, max_bytes=MAX_BYTES)


class PauseSwitch:
    """Whether the queue is paused, as this process knows it. Run `follow` as a background task."""

    def __init__(self, nc: Client, names: Names, keys: KeyValue) -> None:
        self._nc = nc
        self._names = names
        self._keys = keys
        self._pause: Pause | None = None
        self._hint = asyncio.Event()
        self._running = asyncio.Event()
        self.paused = asyncio.Event()
        """Set while the queue is paused."""
        self.on_pause: Callable[[], object] = lambda: None
        """Called when this process learns of a pause."""

    @classmethod
    async def open(cls, nc: Client, names: Names) -> Self:
        """Create the bucket if it is missing, and read the key. Raises Unavailable."""
        js = nc.jetstream()
        with broker_errors():
            await make_stream(js, _bucket(names))
            switch = cls(nc, names, await js.key_value(names.control))
            await nc.subscribe(names.queue_changed, cb=switch._on_hint)
        await switch.read()
        return switch

    async def make_store(self) -> None:
        """Make the bucket, if the server has lost it. Raises what nats-py raises."""
        await make_stream(self._nc.jetstream(), _bucket(self._names))

    @property
    def pause(self) -> Pause | None:
        """The pause, if the queue is paused."""
        return self._pause

    async def set(self, by: str, reason: str | None) -> Pause:
        """Pause the queue. A pause that exists stays as it is, and is returned. Raises Unavailable."""
        if (known := await self.read()) is not None:
            return known
        pause = Pause(since=time.time(), by=by, reason=reason)
        with broker_errors():
            await self._keys.put(KEY, pause.model_dump_json().encode())
            self._take(pause)
            await self._nc.publish(self._names.queue_changed)
        log.info("the queue is paused")
        return pause

    async def clear(self) -> None:
        """Resume the queue. Raises Unavailable."""
        with broker_errors():
            await self._keys.purge(KEY)
            self._take(None)
            await self._nc.publish(self._names.queue_changed)
        log.info("the queue is resumed")

    async def read(self) -> Pause | None:
        """Read the key. Raises Unavailable."""
        with broker_errors():
            try:
                value = (await self._keys.get(KEY)).value or b""
            except KeyNotFoundError:
                pause = None
            else:
                try:
                    pause = read_answer(Pause, value)
                except ValidationError:  # Of another version. Whatever it says, it says that the queue is paused.
                    pause = Pause(since=time.time(), by="unknown")
        self._take(pause)
        return pause

    def _take(self, pause: Pause | None) -> None:
        was, self._pause = self._pause, pause
        if pause is None:
            self.paused.clear()
            self._running.set()
        else:
            self._running.clear()
            self.paused.set()
            if was is None:
                self.on_pause()

    async def follow(self) -> None:
        """Follow the key until cancelled. While the broker is away, what was last known holds."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hint.wait(), READ_S)
            self._hint.clear()
            with contextlib.suppress(Unavailable):
                await self.read()

    async def _on_hint(self, _: Msg) -> None:
        self._hint.set()

    async def wait_running(self) -> None:
        """Wait until the queue is not paused."""
        await self._running.wait()

    async def hold(self, delivery: Msg) -> None:
        """Keep a job that was delivered just before a pause, until the queue is resumed.

        Giving it back would hand it to the next worker that had asked before the pause, and so on.
        """
        while not self._running.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._running.wait(), KEEP_ALIVE_S)
                return
            with contextlib.suppress(*BROKER_ERRORS):
                await delivery.in_progress()
