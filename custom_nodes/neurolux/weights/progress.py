"""How far a download and a loading are, told to whoever waits: the node, and ComfyUI's websocket.

Without ComfyUI (tests, scripts) the base class is silent. A report may raise: so an interrupt stops a transfer.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from ..planning.records import gigabytes

REPORT_SECONDS = 0.5
RATE_WINDOW_SECONDS = 5.0


@dataclass(frozen=True)
class Transfer:
    """A download as it is now: bytes of everything that this model still needs, and the file of the moment."""

    repo: str
    file: str
    done: int
    total: int
    bytes_per_second: float


class LoadReporter:
    """Told of every step; does nothing with it."""

    def downloading(self, transfer: Transfer) -> None:
        """More bytes have arrived."""

    def reading(self, model: str, done: int, total: int) -> None:
        """More of the weights have been read from the disk."""


@dataclass
class Rate:
    """Bytes a second over the last few seconds."""

    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def of(self, done: int, now: float | None = None) -> float:
        """The rate, now that ``done`` bytes are there."""
        now = time.monotonic() if now is None else now
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_WINDOW_SECONDS:
            self._seen.popleft()
        (start, before), elapsed = self._seen[0], now - self._seen[0][0]
        return (done - before) / elapsed if elapsed > 0 and start != now else 0.0


class Throttle:
    """Lets through one report in half a second, and the last one."""

    def __init__(self, seconds: float = REPORT_SECONDS) -> None:
        self._seconds = seconds
        self._last = float("-inf")

    def due(self, *, last: bool) -> bool:
        """Whether to report now."""
        now = time.monotonic()
        if not last and now - self._last < self._seconds:
            return False
        self._last = now
        return True


def transfer_text(transfer: Transfer) -> str:
    """One line for the node: how much of how much, how fast, how long still."""
    line = f"Downloading {transfer.file}: {gigabytes(transfer.done)} of {gigabytes(transfer.total)}"
    if transfer.bytes_per_second <= 0:
        return line
    seconds = (transfer.total - transfer.done) / transfer.bytes_per_second
    left = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    return f"{line}, {gigabytes(transfer.bytes_per_second)}/s, {left} left"
