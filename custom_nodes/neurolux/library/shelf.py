"""The weight files in ComfyUI's model folders. They are listed, not read, so this needs neither torch nor ComfyUI."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from ..errors import WeightsMissing
from ..weights.headers import READABLE
from ..weights.user_files import is_readable_name

FOLDERS: dict[str, str] = {
    "transformer": "diffusion_models",
    "unet": "diffusion_models",
    "text_encoder": "text_encoders",
    "text_encoder_2": "text_encoders",
    "vae": "vae",
    "checkpoint": "checkpoints",
    "lora": "loras",
}
"""ComfyUI's folder for each component's files."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shelf:
    """The weight files below ComfyUI's model folders."""

    roots: Mapping[str, tuple[Path, ...]]
    """Folders, by ComfyUI's name for their kind."""
    _files: dict[str, dict[str, Path]] = field(default_factory=dict)

    def files(self, folder: str) -> dict[str, Path]:
        """The files in one kind of folder, by their paths relative to it."""
        if folder not in self._files:
            found: dict[str, Path] = {}
            for root in self.roots.get(folder, ()):
                for path in files_below(root):
                    found.setdefault(path.relative_to(root).as_posix(), path)
            self._files[folder] = found
        return self._files[folder]

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """A stamp that changes when a file is added, removed or replaced."""
        paths = [path for folder in FOLDERS.values() for path in self.files(folder).values()]
        return tuple((str(path), *file_stamp(path)) for path in paths)

    def path(self, folder: str, name: str) -> Path:
        """The file with the name from a widget. Raises WeightsMissing, which lists the existing files."""
        files = self.files(folder)
        if name not in files:
            known = ", ".join(files) or "none"
            raise WeightsMissing(f"models/{folder} has no {name!r}; it has {known}. Put the file there")
        return files[name]

    def matching(self, folder: str, patterns: Iterable[str]) -> Iterator[Path]:
        """Files whose names match a pattern, in the order of the patterns. Patterns are in lower case."""
        for pattern in patterns:
            for name, path in sorted(self.files(folder).items()):
                if fnmatch(Path(name).name.lower(), pattern):
                    yield path


def files_below(root: Path) -> list[Path]:
    """The weight files below a folder, sorted. Pipes, devices and names that are not text are left out."""
    try:
        found = sorted(walk(root))
        return [path for path in found if path.suffix.lower() in READABLE and is_text(path, root) and path.is_file()]
    except OSError as error:
        _log.warning("NeuroLux: %s cannot be listed: %s", root, error)
        return []


def walk(root: Path) -> Iterator[Path]:
    """All files below a folder, also in folders that links lead to, as ComfyUI lists them; each folder once."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(folder, file) for file in files)


def is_text(path: Path, root: Path) -> bool:
    """Whether the name of a file below a folder is text, as the name of a model must be."""
    return is_readable_name(str(path.relative_to(root)))


def file_stamp(path: Path) -> tuple[int, int]:
    """A stamp that changes when the file is replaced; zeros if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
