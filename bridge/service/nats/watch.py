"""Watches whether the service's own nats-server still stores, and restarts it when it has given up a stream.

After a failed write, for want of disk space above all, nats-server refuses a stream until it is restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from urllib.parse import urlsplit

from bridge.broker.connection import connect
from bridge.broker.probe import StoreProbe
from bridge.contract import BridgeError
from bridge.disk import free_bytes, size
from bridge.service.checks import LEAST_SPACE_BYTES
from bridge.service.children.child import ChildProcess
from bridge.settings import Settings

INTERVAL_S = 5.0
FAILURES = 3
"""So many failed probes in a row are no accident. Twice as many are borne after a restart that did not help."""
MOST_FAILURES = 96
CONNECT_S = 3.0
STOP_GRACE_S = 5.0


class NatsWatch:
    """Probes the streams of the nats-server `child` while `watched` says that it should work."""

    def __init__(
        self,
        child: ChildProcess,
        settings: Settings,
        url: str,
        *,
        watched: Callable[[], bool],
        say: Callable[[str], None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._child = child
        self._settings = settings
        self._url = url
        self._watched = watched
        self._say = say
        self._interval_s = interval_s

    async def run(self) -> None:
        """Watch until cancelled."""
        failures, borne = 0, FAILURES
        told = False
        while True:
            await asyncio.sleep(self._interval_s)
            problem = await self._problem() if self._watched() else None
            failures = failures + 1 if problem else 0
            if problem is None:
                told, borne = False, FAILURES
            if failures < borne:
                continue
            free = free_bytes(self._settings.nats_store)
            if free is not None and free < LEAST_SPACE_BYTES:
                if not told:
                    self._say(
                        f"NATS cannot store: the disk of {self._settings.nats_store} has {size(free)} free; free space "
                        "there, and NATS is restarted by itself"
                    )
                told = True
                continue
            self._say(f"NATS does not store any more, restarting it: {problem}")
            failures, borne = 0, min(2 * borne, MOST_FAILURES)
            await self._child.stop(STOP_GRACE_S)

    async def _problem(self) -> str | None:
        """Why the server does not store; None if it does."""
        try:
            access = self._settings.nats_access
            nc = await connect(self._url, "imagegen-supervisor", access=access, patience_s=CONNECT_S)
        except BridgeError as error:
            return error.message
        try:
            await StoreProbe(lambda: nc, self._settings.names).check()
        except BridgeError as error:
            return error.message
        finally:
            with contextlib.suppress(Exception):  # It is closed, one way or the other.
                await nc.close()
        return None


async def greets(url: str) -> bool:
    """Whether a NATS server greets whoever connects: it sends its INFO at once."""
    parts = urlsplit(url)
    try:
        reader, writer = await asyncio.open_connection(parts.hostname or "127.0.0.1", parts.port or 4222)
    except OSError:
        return False
    try:
        return (await reader.read(5)).startswith(b"INFO")
    except OSError:
        return False
    finally:
        writer.close()


async def accepts(nats_url: str) -> bool:
    """True when something accepts connections at one of the servers of a NATS URL (they are comma-separated)."""
    for server in nats_url.split(","):
        parts = urlsplit(server.strip())
        try:
            async with asyncio.timeout(3):
                _, writer = await asyncio.open_connection(parts.hostname or "127.0.0.1", parts.port or 4222)
            writer.close()
            return True
        except (OSError, TimeoutError):
            continue
    return False
