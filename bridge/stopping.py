"""How background tasks are ended for sure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

STOP_AGAIN_S = 0.2


async def stop(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended: in Python 3.11 `wait_for` loses a cancellation that comes with its answer
    (python/cpython#86296), and nats-py waits with it everywhere."""
    waiting = set(tasks)
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=STOP_AGAIN_S)
