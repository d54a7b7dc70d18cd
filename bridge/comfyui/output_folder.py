"""ComfyUI's output folder, read directly: while ComfyUI ends a run, an answer from `/view` takes milliseconds longer.

File names come from ComfyUI, hence from any node of any pack. Nothing outside the folder is read.
"""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

SMALL_BYTES = 1024 * 1024
"""A file up to this size is read from the page cache faster than a thread starts."""


class OutputFolder:
    """The folder at `path`, which need not exist."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self, subfolder: str, filename: str) -> bytes | None:
        """The bytes of a file; None if it does not exist or is outside the folder, so that ComfyUI must be asked."""
        try:
            folder = self._path.resolve()
            file = (folder / subfolder / filename).resolve()
            if not file.is_relative_to(folder):
                return None
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):
                return None
            if status.st_size <= SMALL_BYTES:
                return file.read_bytes()
            return await asyncio.to_thread(file.read_bytes)
        except (OSError, ValueError):  # ValueError: a name with a null character
            return None
