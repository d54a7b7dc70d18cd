"""ComfyUI's output folder, read without ComfyUI: while it still ends a run, an answer from `/view` takes milliseconds.

Every name comes from ComfyUI, hence from any node of any pack. What does not lie below the folder is not read here.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

SMALL_BYTES = 1024 * 1024
"""Up to this a file in the page cache is read in less time than another thread takes to begin."""


class OutputFolder:
    """The folder `path`, which need not exist."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self, subfolder: str, filename: str) -> bytes | None:
        """A file's bytes; None where ComfyUI itself must be asked: no such file here, or not below the folder."""
        try:
            folder = self._path.resolve()
            file = (folder / subfolder / filename).resolve()
            if not file.is_relative_to(folder):
                return None
            if file.stat().st_size <= SMALL_BYTES:
                return file.read_bytes()
            return await asyncio.to_thread(file.read_bytes)
        except (OSError, ValueError):  # ValueError: a name with a null character
            return None
