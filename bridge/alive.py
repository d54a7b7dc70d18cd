"""A process of the bridge tells the supervisor that started it, at intervals, that its event loop still turns.

A process that is stopped, or blocked for good, says nothing, and the supervisor replaces it.
"""

from __future__ import annotations

import asyncio
import os

ALIVE_VARIABLE = "NEUROLUX_ALIVE_FD"
"""The number of the file descriptor to write to; absent where nobody listens."""
BEAT_S = 2.0


async def beat() -> None:
    """Write a byte every few seconds until cancelled; return at once where nobody listens."""
    number = os.environ.pop(ALIVE_VARIABLE, "")  # no child inherits it
    if not number.isdecimal():
        return
    pipe = int(number)
    os.set_inheritable(pipe, False)
    os.set_blocking(pipe, False)
    while True:
        try:
            os.write(pipe, b".")
        except BlockingIOError:
            pass  # The supervisor is busy, and has enough to read.
        except OSError:
            return
        await asyncio.sleep(BEAT_S)
