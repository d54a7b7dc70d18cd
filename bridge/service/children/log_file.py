"""The log file of a child process: rotated while the child runs, and harmless when the disk is full."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from pathlib import Path

from bridge.terminal import without_colours

LOG_BYTES = 8 * 1024 * 1024
"""A file of this size is renamed to `<name>.1`, which replaces the one before."""
TAIL_BYTES = 64 * 1024


class LogFile:
    """Appends what a child writes. No method raises OSError: the service goes on without its log if it must.

    Lines that could not be written are counted, and the file says so as soon as it can be written again.
    """

    def __init__(self, path: Path, *, limit: int = LOG_BYTES) -> None:
        self.path = path
        self._limit = limit
        self._file: int | None = None
        self._size = 0
        self._lost = 0
        self._tail: deque[bytes] = deque()
        self._tail_size = 0

    def begin(self) -> None:
        """The child starts: `tail` forgets what an earlier process wrote."""
        self._tail.clear()
        self._tail_size = 0

    def write(self, data: bytes) -> None:
        """Append what the child wrote. The file is rotated between two lines."""
        self._remember(data)
        if self._size >= self._limit:
            end = data.find(b"\n") + 1
            if end or self._size >= 2 * self._limit:
                self._append(data[:end])
                self._rotate()
                data = data[end:]
        self._append(data)

    def tail(self, lines: int) -> str:
        """The last lines that the process wrote, without their colours; also those that the disk did not take."""
        text = without_colours(b"".join(self._tail).decode("utf-8", "replace"))
        return "\n".join(text.rstrip().splitlines()[-lines:])

    def close(self) -> None:
        """Close the file; the next `write` opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _remember(self, data: bytes) -> None:
        self._tail.append(data)
        self._tail_size += len(data)
        while len(self._tail) > 1 and self._tail_size - len(self._tail[0]) >= TAIL_BYTES:
            self._tail_size -= len(self._tail.popleft())

    def _append(self, data: bytes) -> None:
        if not data:
            return
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                self._size = os.fstat(self._file).st_size
            if self._lost:
                self._put(f"\n[{self._lost} bytes of this log could not be written]\n".encode())
                self._lost = 0
            self._put(data)
        except OSError:  # No space, above all. Whoever reads the log learns it there.
            self._lost += len(data)

    def _put(self, data: bytes) -> None:
        assert self._file is not None
        while data:
            written = os.write(self._file, data)
            self._size += written
            data = data[written:]

    def _rotate(self) -> None:
        self.close()
        self._size = 0
        with contextlib.suppress(OSError):
            self.path.replace(self.path.with_name(self.path.name + ".1"))
