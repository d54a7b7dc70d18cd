"""How fast the disk with a weight file is: a short read of the file itself, past the system's cache. No torch."""

from __future__ import annotations

import os
import time
from pathlib import Path

from .download.sources import ResolvedFiles

PIECE = 16 << 20
MOST_BYTES = 512 << 20
MOST_SECONDS = 0.5
LEAST_BYTES = 64 << 20
"""Of a file: a shorter read says more about the system than about the disk."""
_rates: dict[int, float | None] = {}
"""By disk."""


def read_rate(path: Path) -> float | None:
    """Bytes a second from the disk that ``path`` is on, measured once for each disk; None if the file is too small,
    cannot be read, or the system does not let its cache be emptied."""
    try:
        status = path.stat()
        if status.st_size < LEAST_BYTES:
            return None
        if status.st_dev not in _rates:
            _rates[status.st_dev] = _measured(path)
        return _rates[status.st_dev]
    except OSError:
        return None


def rate_of_files(files: ResolvedFiles | None) -> float | None:
    """``read_rate`` of a model's largest file; None without files."""
    if files is None:
        return None
    single = files.single.files if files.single is not None else ()
    paths = [path for path in (files.checkpoint, files.vae, *single) if path is not None]
    if files.pipeline is not None:
        paths += [path for path in files.pipeline.rglob("*") if path.is_file()]
    found = [path for path in paths if path.is_file()]
    return read_rate(max(found, key=lambda path: path.stat().st_size)) if found else None


def _measured(path: Path) -> float | None:
    if not hasattr(os, "posix_fadvise"):
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)  # what was just written or read would answer at once
        started, read = time.perf_counter(), 0
        while read < MOST_BYTES and time.perf_counter() - started < MOST_SECONDS:
            piece = len(os.pread(handle, PIECE, read))
            if not piece:
                break
            read += piece
        return read / max(time.perf_counter() - started, 1e-9) if read else None
    finally:
        os.close(handle)
