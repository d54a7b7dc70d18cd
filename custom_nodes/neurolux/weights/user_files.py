"""Reads what users put into ComfyUI's folders, where a file may be anything: a pipe, a device, a loop, or nonsense.

Nothing here blocks, and everything that fails raises OSError or ValueError. Imports neither torch nor ComfyUI.
"""

from __future__ import annotations

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

LARGEST_JSON = 64_000_000
"""Bytes of a configuration file. The index of a very large model takes less than one tenth of this."""
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. Raises OSError if it cannot be read, or is a pipe, a device or a folder."""
    _check_regular(os.stat(path))
    # Another program may put a pipe in its place now, which would block without O_NONBLOCK.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _check_regular(os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "something else")
        raise OSError(None, f"it is {kind}, not a file")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a configuration file. Raises OSError, or ValueError for any other content."""
    with open_regular(path) as file:
        data = file.read(LARGEST_JSON + 1)
    if len(data) > LARGEST_JSON:
        raise ValueError(f"{path.name} is larger than {LARGEST_JSON:,} bytes")
    return json_object(data)


def json_object(data: bytes, *, unique: bool = False) -> dict[str, Any]:
    """The object in a JSON text. Raises ValueError for anything else, and if ``unique`` for a name that comes twice."""
    try:
        found = json.loads(data, object_pairs_hook=once_each if unique else None)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("its JSON is not an object")
    return found


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object. Raises ValueError for a name that comes twice: programs differ in what they take."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"its JSON has {name!r} twice")
        found[name] = value
    return found


def printable_name(name: str) -> str:
    """A file name for JSON: the bytes of one that is not UTF-8 are replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def is_readable_name(name: str) -> bool:
    """Whether a file name is text: on Linux it may be any bytes, which no JSON can hold."""
    return printable_name(name) == name
