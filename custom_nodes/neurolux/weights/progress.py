"""Progress of downloads and of loading, reported to the node and to ComfyUI's websocket.

Without ComfyUI (in tests and scripts), the base class reports nothing. A report may raise, so an interrupt can stop a
transfer.
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
    """The state of a download: bytes of everything that the model still needs, and the current file."""

    repo: str
    file: str
    done: int
    total: int
    bytes_per_second: float


class LoadReporter:
    """Receives progress and ignores it. Subclasses report it."""

    def check(self) -> None:
        """Called while there is nothing to report."""

    def downloading(self, transfer: Transfer) -> None:
        """Called when more bytes have arrived."""

    def reading(self, model: str, done: int, total: int) -> None:
        """Called when more of the weights have been read from disk."""


@dataclass
class Rate:
    """Bytes per second over the last few seconds."""

    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def of(self, done: int, now: float | None = None) -> float:
        """The rate, given that ``done`` bytes have arrived by now."""
        now = time.monotonic() if now is None else now
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_WINDOW_SECONDS:
            self._seen.popleft()
        (start, before), elapsed = self._seen[0], now - self._seen[0][0]
        return (done - before) / elapsed if elapsed > 0 and start != now else 0.0


class Throttle:
    """Lets one report through every half second, and always the last one."""

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
    """One line of text for the node: bytes done and in total, rate, time left."""
    line = f"Downloading {transfer.file}: {gigabytes(transfer.done)} of {gigabytes(transfer.total)}"
    if transfer.bytes_per_second <= 0:
        return line
    seconds = (transfer.total - transfer.done) / transfer.bytes_per_second
    left = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    return f"{line}, {gigabytes(transfer.bytes_per_second)}/s, {left} left"
