"""A file of weights, or a diffusers folder of them, as it is now: its stamp, its configuration, its tensors' shapes.

Imports neither torch nor ComfyUI, so that a folder of thousands of files can be listed at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import WeightsMissing
from .headers import parsed_safetensors

CONFIG_FILE = "config.json"
Shapes = Mapping[str, tuple[int, ...]]
"""Shape by tensor name."""


@dataclass(frozen=True)
class FileStamp:
    """A file as it is now; a replaced file is another one. A folder counts as one file."""

    name: str
    """As ComfyUI lists it."""
    path: Path
    modified_ns: int
    size: int

    @property
    def key(self) -> str:
        """A short name for it, made of letters and digits (peft makes module names of adapter names)."""
        text = f"{self.path}\0{self.modified_ns}\0{self.size}"
        return "file_" + hashlib.sha256(text.encode()).hexdigest()[:16]


def stamp_file(name: str, path: Path) -> FileStamp:
    """The stamp of a file or of a diffusers folder. Raises WeightsMissing where there is nothing."""
    return stamp_files(name, path, [*weight_files(path), path / CONFIG_FILE] if path.is_dir() else [path])


def stamp_folder(name: str, folder: Path) -> FileStamp:
    """The stamp of a folder of which every file counts. Raises WeightsMissing where there is nothing."""
    return stamp_files(name, folder, sorted(folder.iterdir()) if folder.is_dir() else [folder])


def stamp_files(name: str, path: Path, files: list[Path]) -> FileStamp:
    """The stamp of ``path``, which consists of ``files``. Raises WeightsMissing where one cannot be read."""
    try:
        stats = [file.stat() for file in files]
    except OSError as error:
        raise WeightsMissing(
            f"{name} cannot be read ({error.strerror}); put it back, or choose another file"
        ) from error
    modified = max((stat.st_mtime_ns for stat in stats), default=0)
    return FileStamp(name, path, modified, sum(stat.st_size for stat in stats))


def weight_files(folder: Path) -> list[Path]:
    """The weights in a diffusers folder."""
    return sorted(folder.glob("*.safetensors"))


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """A diffusers folder's configuration. Raises WeightsMissing for one that is damaged."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise WeightsMissing(f"{name}: its {CONFIG_FILE} is damaged ({error}); fetch it again") from error
    return config


def read_shapes(path: Path) -> Shapes:
    """The shapes of every tensor in a safetensors file. Raises WeightsMissing for a damaged one, or another kind.

    Not kept in memory, unlike ``headers.read_header``: there may be thousands of such files.
    """
    if path.suffix != ".safetensors":
        raise WeightsMissing(
            f"{path.name} is a {path.suffix or 'nameless'} file, which can hold code and is not opened; "
            "convert it to .safetensors, or get that version of it"
        )
    try:
        size = path.stat().st_size
    except OSError as error:
        raise WeightsMissing(
            f"{path.name} cannot be read ({error.strerror}); put it back, or choose another file"
        ) from error
    return {name: tensor.shape for name, tensor in parsed_safetensors(path, size).items()}


def all_shapes(file: FileStamp) -> Shapes:
    """The shapes of every tensor in a file, or in all files of a diffusers folder. Raises WeightsMissing."""
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(file.path) if file.path.is_dir() else [file.path]:
        found.update(read_shapes(path))
    return found
