"""Finds the zip or folder of training images that a user names, in ComfyUI's folders."""

from __future__ import annotations

import hashlib
from pathlib import Path

import folder_paths

from ..errors import InvalidParameter
from .image_files import FIELD


def find_source(source: str) -> Path:
    """The zip or folder that ``source`` names: in ComfyUI's input folder, or an absolute path into one of its folders.

    Raises InvalidParameter if it is elsewhere or does not exist.
    """
    inputs = Path(folder_paths.get_input_directory()).resolve()
    others = (folder_paths.get_output_directory(), folder_paths.get_temp_directory())
    own = [inputs, *(Path(folder).resolve() for folder in others)]
    path = (inputs / source).resolve()
    if not source.strip() or not any(path.is_relative_to(folder) for folder in own):
        raise InvalidParameter(FIELD, f"{FIELD} {source!r} is not in ComfyUI's input folder; put the images there")
    if not path.exists():
        raise InvalidParameter(FIELD, f"there is no zip or folder {source!r} in ComfyUI's input folder")
    return path


def source_stamp(source: str) -> str:
    """A stamp that changes when the zip, or a file in the folder, changes; empty if there is no such source."""
    try:
        path = find_source(source)
    except InvalidParameter:
        return ""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(str(file), file.lstat().st_mtime_ns, file.lstat().st_size) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()
