"""The current state of a weight file or a diffusers folder: its stamp, its configuration, the shapes of its tensors.

Imports neither torch nor ComfyUI, so a folder of thousands of files can be listed fast.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import WeightsMissing
from .headers import is_safetensors, parsed_safetensors
from .user_files import read_json

CONFIG_FILE = "config.json"
Shapes = Mapping[str, tuple[int, ...]]
"""Shape by tensor name."""


@dataclass(frozen=True)
class FileStamp:
    """The identity of a file at one moment: a replaced file has another stamp. A folder counts as one file."""

    name: str
    """The name that ComfyUI lists."""
    path: Path
    modified_ns: int
    size: int

    @property
    def key(self) -> str:
        """A short unique name of letters and digits. peft turns adapter names into module names."""
        text = f"{self.path}\0{self.modified_ns}\0{self.size}"
        return "file_" + hashlib.sha256(text.encode()).hexdigest()[:16]


def stamp_file(name: str, path: Path) -> FileStamp:
    """The stamp of a file or of a diffusers folder. Raises WeightsMissing if it cannot be read."""
    return stamp_files(name, path, [*weight_files(path), path / CONFIG_FILE] if path.is_dir() else [path])


def stamp_folder(name: str, folder: Path) -> FileStamp:
    """The stamp of a folder and all its files. Raises WeightsMissing if it cannot be read."""
    return stamp_files(name, folder, sorted(folder.iterdir()) if folder.is_dir() else [folder])


def stamp_files(name: str, path: Path, files: list[Path]) -> FileStamp:
    """The stamp of ``path``, which consists of ``files``. Raises WeightsMissing if one cannot be read."""
    try:
        stats = [file.stat() for file in files]
    except OSError as error:
        raise WeightsMissing(
            f"{name} cannot be read ({error.strerror}); put it back, or choose another file"
        ) from error
    modified = max((stat.st_mtime_ns for stat in stats), default=0)
    return FileStamp(name, path, modified, sum(stat.st_size for stat in stats))


def weight_files(folder: Path) -> list[Path]:
    """The weight files in a diffusers folder."""
    return sorted(path for path in folder.glob("*") if is_safetensors(path))


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """The configuration of a diffusers folder. Raises WeightsMissing if it is damaged."""
    try:
        return read_json(folder / CONFIG_FILE)
    except (OSError, ValueError) as error:
        raise WeightsMissing(f"{name}: its {CONFIG_FILE} is damaged ({error}); fetch it again") from error


def read_shapes(path: Path) -> Shapes:
    """The shape of every tensor in a safetensors file. Raises WeightsMissing for a damaged file or another format."""
    return read_described(path)[0]


def read_described(path: Path) -> tuple[Shapes, Mapping[str, str]]:
    """The shape of every tensor in a safetensors file, and its metadata. Raises WeightsMissing as ``read_shapes``.

    Unlike ``headers.read_header`` this does not cache: there may be thousands of such files.
    """
    if not is_safetensors(path):
        raise WeightsMissing(
            f"{path.name} is a {path.suffix or 'nameless'} file, which can hold code and is not opened; "
            "convert it to .safetensors, or download a .safetensors version"
        )
    try:
        size = path.stat().st_size
    except OSError as error:
        raise WeightsMissing(
            f"{path.name} cannot be read ({error.strerror}); put it back, or choose another file"
        ) from error
    tensors, metadata = parsed_safetensors(path, size)
    return {name: tensor.shape for name, tensor in tensors.items()}, metadata


def all_shapes(file: FileStamp) -> Shapes:
    """The shape of every tensor in a file, or in all files of a diffusers folder. Raises WeightsMissing."""
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(file.path) if file.path.is_dir() else [file.path]:
        found.update(read_shapes(path))
    return found
