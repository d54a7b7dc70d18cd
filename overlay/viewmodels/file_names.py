"""Names for saved images, made of prompt, model and seed. No existing file is overwritten."""

from __future__ import annotations

import os
import re
from pathlib import Path

LONGEST_SLUG = 48


def suggested_name(prompt: str, model: str | None, seed: int | None, extension: str) -> str:
    """``a-red-fox-in-the-snow-flux-schnell-7.png``; words in every alphabet are kept."""
    slug = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")
    if len(slug) > LONGEST_SLUG:
        slug = slug[:LONGEST_SLUG].rsplit("-", 1)[0].strip("-_")
    parts = [slug or "image", model or "", "" if seed is None else str(seed)]
    return "-".join(part for part in parts if part).replace("/", "-") + f".{extension}"


def save_new(folder: Path, name: str, data: bytes) -> Path:
    """Write ``data`` under ``name``, or under ``name (2)`` and so on if that exists. Returns the path.

    The file appears complete or not at all: it is written under a temporary name and then linked, because a link fails
    instead of overwriting (two overlays may save at the same moment). Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem, extension = os.path.splitext(name)
    partial = folder / f".{stem}.{os.getpid()}.partial"
    partial.write_bytes(data)
    try:
        number = 1
        while True:
            path = folder / (name if number == 1 else f"{stem} ({number}){extension}")
            try:
                _place(partial, path)
                return path
            except FileExistsError:
                number += 1
    finally:
        partial.unlink(missing_ok=True)


def _place(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, such as FAT
        with path.open("xb") as file:
            file.write(partial.read_bytes())
