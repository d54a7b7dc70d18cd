"""The files of a zip or of a folder, by name, within bounds. Nothing is ever unpacked to the disk. Pure.

A zip comes from whoever sends a request: its names are only labels here, what it says of sizes is held against bounds
before a byte is unpacked, and zipfile itself never yields more bytes than a file's entry says.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..errors import InvalidParameter

FIELD = "pictures"
"""What a request calls the zip or the folder."""
MOST_FILES = 5_000
LARGEST_FILE = 100_000_000
LARGEST_TOTAL = 8_000_000_000
"""Bytes, unpacked."""
IGNORED_FOLDERS = ("__MACOSX",)
ENCRYPTED = 0x1
"""Flag of a zip entry (APPNOTE 4.4.4)."""
READ_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError)
"""What zipfile raises for a damaged entry, one with a password, and one that is packed in a way it does not know."""


class TrainingFiles(ABC):
    """Files by name, with slashes between folders. ``label`` is what the user calls the whole."""

    def __init__(self, label: str, sizes: Mapping[str, int]) -> None:
        self.label = label
        self.sizes = sizes
        """Bytes of each, in the order of the names."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All of a file. Raises InvalidParameter for one that is damaged."""


class FolderFiles(TrainingFiles):
    """The files below a folder."""

    def __init__(self, label: str, root: Path) -> None:
        self._root = root.resolve()
        super().__init__(label, checked_sizes(label, self._found(label)))

    def _found(self, label: str) -> Iterator[tuple[str, int]]:
        for folder, _, names in os.walk(self._root):
            for name in names:
                path = Path(folder, name)
                relative = path.relative_to(self._root).as_posix()
                if not path.resolve().is_relative_to(self._root):
                    raise InvalidParameter(FIELD, f"{label}: {relative} links to a file elsewhere; put a copy there")
                if path.is_file():
                    yield relative, path.stat().st_size

    def read(self, name: str) -> bytes:
        try:
            with (self._root / name).open("rb") as file:
                return whole(self.label, name, file.read(LARGEST_FILE + 1))
        except OSError as error:
            raise InvalidParameter(FIELD, f"{self.label}: {name} cannot be read ({error.strerror})") from error


class ZipFiles(TrainingFiles):
    """The files in a zip."""

    def __init__(self, label: str, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
        files = (entry for entry in archive.infolist() if not entry.is_dir())
        super().__init__(label, checked_sizes(label, (checked_entry(label, entry) for entry in files)))

    def read(self, name: str) -> bytes:
        try:
            with self._archive.open(self._entries[name]) as file:
                return whole(self.label, name, file.read(LARGEST_FILE + 1))
        except READ_ERRORS as error:
            raise InvalidParameter(
                FIELD, f"{self.label}: {name} in the zip is damaged ({error}); pack it again"
            ) from error


def checked_entry(label: str, entry: zipfile.ZipInfo) -> tuple[str, int]:
    """Name and size of a zip entry. Raises InvalidParameter for a name that is a path trick, and for a link."""
    name = entry.filename
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name or ":" in name or not name.isprintable():
        raise InvalidParameter(FIELD, f"{label}: the name {name!r} in the zip leads out of it; pack it again without")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise InvalidParameter(FIELD, f"{label}: {name} in the zip is a link; pack the file itself")
    if entry.flag_bits & ENCRYPTED:
        raise InvalidParameter(FIELD, f"{label}: {name} in the zip has a password; pack it without")
    return name, entry.file_size


def checked_sizes(label: str, found: Iterator[tuple[str, int]]) -> Mapping[str, int]:
    """Sizes by name, sorted; hidden files and what systems add are left out. Raises InvalidParameter beyond bounds."""
    sizes: dict[str, int] = {}
    total = 0
    for count, (name, size) in enumerate(found, start=1):
        if count > MOST_FILES:
            raise InvalidParameter(FIELD, f"{label} has more than {MOST_FILES} files; train with fewer")
        if any(part.startswith(".") or part in IGNORED_FOLDERS for part in PurePosixPath(name).parts):
            continue
        if name in sizes:
            raise InvalidParameter(FIELD, f"{label}: {name} is there twice; keep one of them")
        if size > LARGEST_FILE:
            raise InvalidParameter(FIELD, f"{label}: {name} has {size} bytes; at most {LARGEST_FILE} are read")
        total += size
        if total > LARGEST_TOTAL:
            raise InvalidParameter(FIELD, f"{label} has more than {LARGEST_TOTAL} bytes unpacked; train with less")
        sizes[name] = size
    return dict(sorted(sizes.items()))


def whole(label: str, name: str, data: bytes) -> bytes:
    """``data``, if it is within the bound. Raises InvalidParameter."""
    if len(data) > LARGEST_FILE:
        raise InvalidParameter(FIELD, f"{label}: {name} has more than {LARGEST_FILE} bytes")
    return data


@contextmanager
def open_files(label: str, path: Path) -> Iterator[TrainingFiles]:
    """The files of a folder or of a zip. Raises InvalidParameter where it is neither."""
    if path.is_dir():
        yield FolderFiles(label, path)
        return
    if not path.is_file():
        raise InvalidParameter(FIELD, f"{label} no longer exists; send the images again")
    try:
        archive = zipfile.ZipFile(path)
    except READ_ERRORS as error:
        raise InvalidParameter(
            FIELD, f"{label} is neither a folder nor a zip that can be read ({error}); send a zip of images"
        ) from error
    with archive:
        yield ZipFiles(label, archive)
