"""Writes the files of an answer: each under its own extension, and never over an existing file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bridge.contract import EXTENSIONS, MEDIA_TYPES, ImageGenResponse, ResultFile, extension_of, format_of

SLUG_CHARS = 48


def is_file_name(path: Path) -> bool:
    """Whether a path means a file and not a folder: it ends in the extension of a result."""
    return format_of(path.name) is not None


def paths_for(answer: ImageGenResponse, out: Path | None = None) -> list[Path]:
    """Where each file of `answer` goes; `out` is a folder or a file, without it the current folder.

    Where the extension of `out` does not fit a file, that file keeps its own.
    """
    paths: list[Path] = []
    files = files_of(answer)
    for index in range(len(files)):
        path = _path(answer, files, index, out)
        free, count = path, 1
        while free.exists() or free in paths:
            count += 1
            free = path.with_name(f"{path.stem} ({count}){path.suffix}")
        paths.append(free)
    return paths


def write_files(answer: ImageGenResponse, files: Sequence[bytes], out: Path | None = None) -> list[Path]:
    """Write the files of `answer` where `paths_for` says, and return their paths. Raises OSError."""
    paths = paths_for(answer, out)
    for path, data in zip(paths, files, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return paths


def files_of(answer: ImageGenResponse) -> list[ResultFile]:
    """What each file of an answer is. A service that is older than this client sends only images and does not say."""
    extension = EXTENSIONS[answer.image_format]
    image = ResultFile(result="", media_type=MEDIA_TYPES[extension], extension=extension, size=0)
    return answer.files or [image] * len(answer.images)


def _path(answer: ImageGenResponse, files: list[ResultFile], index: int, out: Path | None) -> Path:
    file = files[index]
    if out is not None and is_file_name(out):
        stem = out.stem if len(files) == 1 else f"{out.stem}-{index + 1}"
        given = extension_of(out.name)
        same = format_of(f".{given}") == format_of(f".{file.extension}")
        return out.parent / f"{stem}.{given if same else file.extension}"
    slug = re.sub(r"[^\w]+", "-", (answer.prompt or answer.mode).lower()).strip("-")[:SLUG_CHARS].strip("-")
    stem = f"{slug or 'image'}-{answer.model or answer.mode}"
    if len({each.result for each in files}) > 1 and (result := re.sub(r"[^\w]+", "-", file.result).strip("-")):
        stem += f"-{result}"
    if answer.seed is not None:
        # Image i of a result has seed + i.
        before = sum(each.result == file.result for each in files[:index])
        stem += f"-{answer.seed + before}"
    return (out or Path()) / f"{stem}.{file.extension}"
