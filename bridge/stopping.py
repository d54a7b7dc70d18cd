"""Ending background tasks reliably."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

STOP_AGAIN_S = 0.2


async def stop(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended.

    Once is not enough: Python 3.11's `wait_for` loses a cancellation that arrives together with its result
    (python/cpython#86296), and nats-py waits with it everywhere.
    """
    waiting = set(tasks)
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=STOP_AGAIN_S)
