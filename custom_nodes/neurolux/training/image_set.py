"""The images that a LoRA is trained on, and what each shows: read from a zip or a folder, within bounds. Pure.

An image's caption is the text file beside it (``cat.txt`` for ``cat.png``), else its line in a ``metadata.jsonl`` (the
"imagefolder" of Hugging Face's datasets), else the trigger word or the name of its file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..errors import InvalidParameter
from ..images.decoding import WEB_FORMATS, UnreadableImage, decoded, upright_size
from ..images.decoding import opened as opened_image
from .image_files import FIELD, TrainingFiles, open_files

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CAPTION_SUFFIX = ".txt"
METADATA_FILE = "metadata.jsonl"
CAPTION_KEYS = ("text", "caption", "prompt")
"""Of a line in metadata.jsonl. ``text`` is what diffusers' training scripts write."""
MOST_IMAGES = 1_000
LARGEST_IMAGE = 80_000_000
"""Pixels."""
SMALLEST_SIDE = 16
LONGEST_CAPTION = 5_000
NAMED = 5
"""How many files a sentence names."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingImage:
    """One image, unread."""

    name: str
    digest: str
    """SHA-256 of the file."""
    size: tuple[int, int]
    """Width and height, turned as its EXIF says."""
    caption: str | None
    """What the files say that it shows."""
    caption_from: str
    """Where that is from, for the user: "text files", "metadata.jsonl", or "no caption"."""


@dataclass(frozen=True)
class TrainingSet:
    """Images with captions, and where their files are."""

    label: str
    path: Path
    images: tuple[TrainingImage, ...]
    left_out: tuple[str, ...]
    """Files that are no images we read and no captions."""
    unused: tuple[str, ...] = ()
    """Text files that are the caption of no image."""

    @property
    def digest(self) -> str:
        """Changes with every image, caption and name."""
        parts = [(image.name, image.digest, image.caption) for image in self.images]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def summary(self) -> str:
        """What was found, in a sentence."""
        sources = Counter(image.caption_from for image in self.images)
        captions = ", ".join(f"{count} with {source}" for source, count in sources.items())
        return f"{len(self.images)} images ({captions})"

    def warnings(self) -> list[str]:
        """What the user should know of what was left out."""
        said = []
        if self.left_out:
            what = "only PNG, JPEG and WebP images and their .txt are read"
            said.append(f"left out, because {what}: {named(self.left_out)}")
        if self.unused:
            said.append(f"not used, because there is no image of that name in its folder: {named(self.unused)}")
        return said

    def __str__(self) -> str:
        """ComfyUI writes a failed node's inputs into its error report."""
        return f"{self.label}: {self.summary()}"


@dataclass(frozen=True)
class FittedImage:
    """An image as it is trained on: scaled and cut to a square."""

    pixels: np.ndarray
    """(side, side, 3) float32 in [0, 1]."""
    original: tuple[int, int]
    """Width and height before."""
    crop: tuple[int, int]
    """Left and top of the cut in the scaled image; SDXL takes it as an input."""


def named(names: tuple[str, ...] | list[str]) -> str:
    """File names for a sentence."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def read_training_set(label: str, path: Path) -> TrainingSet:
    """Look through a zip or a folder: every image's head and caption, no pixels. Raises InvalidParameter."""
    with open_files(label, path) as files:
        names = [name for name in files.sizes if name.lower().endswith(IMAGE_SUFFIXES)]
        if not names:
            raise InvalidParameter(FIELD, f"{label} has no image: put PNG, JPEG or WebP files into it")
        if len(names) > MOST_IMAGES:
            raise InvalidParameter(FIELD, f"{label} has {len(names)} images; at most {MOST_IMAGES} are taken")
        listed = read_metadata(files)
        beside = captions_beside(files.sizes, names)
        images = tuple(training_image(files, name, beside.get(name), listed) for name in names)
    known = (*IMAGE_SUFFIXES, CAPTION_SUFFIX)
    others = (name for name in files.sizes if PurePosixPath(name).name != METADATA_FILE)
    left_out = tuple(name for name in others if not name.lower().endswith(known))
    used = set(beside.values())
    unused = tuple(name for name in files.sizes if name.lower().endswith(CAPTION_SUFFIX) and name not in used)
    return TrainingSet(label, path, images, left_out, unused)


def captions_beside(files: Iterable[str], images: Iterable[str]) -> dict[str, str]:
    """The text file of each image that has one: of the same name, else of one that differs only in upper case.

    Names differ in case where images and captions come from different programs, such as CAT.JPG and cat.txt.
    """
    texts = [name for name in files if name.lower().endswith(CAPTION_SUFFIX)]
    exact, by_lower_case = set(texts), {}
    for text in reversed(texts):  # the first of several counts
        by_lower_case[text.lower()] = text
    found: dict[str, str] = {}
    for image in images:
        beside = str(PurePosixPath(image).with_suffix(CAPTION_SUFFIX))
        text = beside if beside in exact else by_lower_case.get(beside.lower())
        if text is not None:
            found[image] = text
    return found


def training_image(files: TrainingFiles, name: str, beside: str | None, listed: Mapping[str, str]) -> TrainingImage:
    """One image's record. ``beside``: its text file."""
    data = files.read(name)
    size = checked_size(files.label, name, data)
    caption, source = caption_of(files, name, beside, listed)
    return TrainingImage(name, hashlib.sha256(data).hexdigest(), size, caption, source)


def checked_size(label: str, name: str, data: bytes) -> tuple[int, int]:
    """Width and height of an image, turned as its EXIF says. Raises InvalidParameter."""
    try:
        image = opened_image(data, WEB_FORMATS)
    except UnreadableImage as error:
        raise InvalidParameter(FIELD, f"{label}: {name} {error}") from error
    width, height = image.size
    if width * height > LARGEST_IMAGE:
        raise InvalidParameter(
            FIELD, f"{label}: {name} has {width}x{height} pixels; at most {LARGEST_IMAGE} in all are read"
        )
    if min(width, height) < SMALLEST_SIDE:
        raise InvalidParameter(FIELD, f"{label}: {name} has {width}x{height} pixels; a side needs {SMALLEST_SIDE}")
    try:
        return upright_size(image)
    except UnreadableImage as error:
        raise InvalidParameter(FIELD, f"{label}: {name} {error}; replace it") from error


def caption_of(
    files: TrainingFiles, name: str, beside: str | None, listed: Mapping[str, str]
) -> tuple[str | None, str]:
    """What the files say that image ``name`` shows, and which of them says it."""
    found, source = listed.get(name), METADATA_FILE
    if beside is not None:
        source = "text files"
        try:
            found = files.read(beside).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidParameter(FIELD, f"{files.label}: {beside} is not UTF-8 text ({error})") from error
    caption = " ".join((found or "").split())
    if len(caption) > LONGEST_CAPTION:
        raise InvalidParameter(
            FIELD, f"{files.label}: the caption of {name} has {len(caption)} characters; at most {LONGEST_CAPTION}"
        )
    return (caption, source) if caption else (None, "no caption")


def read_metadata(files: TrainingFiles) -> dict[str, str]:
    """Captions by image, from every ``metadata.jsonl``; ``file_name`` is relative to its folder."""
    found: dict[str, str] = {}
    for path in (name for name in files.sizes if PurePosixPath(name).name == METADATA_FILE):
        for number, line in metadata_lines(files, path):
            where = f"{files.label}: line {number} of {path}"
            try:
                entry = json.loads(line)
                file_name = entry["file_name"]
                captions = [entry[key] for key in CAPTION_KEYS if isinstance(entry.get(key), str)]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise InvalidParameter(FIELD, f'{where} is no {{"file_name": …, "text": …}} ({error})') from error
            name = (PurePosixPath(path).parent / str(file_name)).as_posix()
            if name not in files.sizes:
                raise InvalidParameter(FIELD, f"{where} names {file_name}, which is not there")
            if captions:
                found[name] = captions[0]
    return found


def metadata_lines(files: TrainingFiles, path: str) -> Iterator[tuple[int, str]]:
    """The lines that say something, numbered from 1."""
    try:
        lines = files.read(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidParameter(FIELD, f"{files.label}: {path} is not UTF-8 text ({error})") from error
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def spoken(image: TrainingImage, trigger: str) -> str:
    """The caption to train with: it always has the trigger word."""
    if image.caption is None:
        words = re.sub(r"[\W_]+", " ", re.sub(r"[\W_\d]+$", "", PurePosixPath(image.name).stem)).strip()
        return trigger or words
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", image.caption, re.IGNORECASE):
        return image.caption
    return f"{trigger}, {image.caption}"


def fitted(label: str, entry: TrainingImage, data: bytes, side: int) -> FittedImage:
    """The pixels of ``entry``: upright, on white, scaled to cover a square of ``side`` and cut around the middle.

    Raises InvalidParameter where it is damaged or has changed since it was looked at.
    """
    if hashlib.sha256(data).hexdigest() != entry.digest:
        raise InvalidParameter(FIELD, f"{label}: {entry.name} was changed meanwhile; queue the training again")
    width, height = checked_size(label, entry.name, data)
    try:
        found = decoded(data, WEB_FORMATS)
    except UnreadableImage as error:
        raise InvalidParameter(FIELD, f"{label}: {entry.name} {error}; replace it") from error
    for warning in found.warnings:
        _log.warning("NeuroLux: %s: %s: %s", label, entry.name, warning)
    image = found.on_white()
    scale = side / min(width, height)
    scaled = (max(side, round(width * scale)), max(side, round(height * scale)))
    left, top = (scaled[0] - side) // 2, (scaled[1] - side) // 2
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.LANCZOS)
    image = image.crop((left, top, left + side, top + side))
    return FittedImage(np.asarray(image, dtype=np.float32) / 255, (width, height), (left, top))
