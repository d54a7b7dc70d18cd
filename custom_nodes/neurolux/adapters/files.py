"""LoRA and ControlNet files: what they are, told from their names and shapes alone. Opens no weights, imports no torch.

A safetensors file begins with a JSON header of its tensors (safetensors' README), so a folder of thousands of files can
be listed, and a file for another model refused, before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import WeightsMissing
from ..families.identify import detect_control, detect_lora
from ..families.registry import families
from ..families.spec import Detected

AdapterKind = Literal["lora", "controlnet"]
Header = Mapping[str, tuple[int, ...]]
"""Shape by tensor name."""
CONFIG_FILE = "config.json"
LARGEST_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""


@dataclass(frozen=True)
class FileStamp:
    """A file as it is now; a replaced file is another one. A diffusers folder counts as one file."""

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


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA or a ControlNet that is on this machine."""

    name: str
    kind: AdapterKind
    family: str | None
    bytes: int
    problem: str | None = None


_detected: dict[tuple[AdapterKind, FileStamp], Detected] = {}


def stamp_file(name: str, path: Path) -> FileStamp:
    """The stamp of a file or of a diffusers folder. Raises WeightsMissing where there is nothing."""
    files = weight_files(path) + [path / CONFIG_FILE] if path.is_dir() else [path]
    try:
        stats = [file.stat() for file in files]
    except OSError as error:
        raise WeightsMissing(
            f"{name} cannot be read ({error.strerror}); put it back, or choose another file"
        ) from error
    return FileStamp(name, path, max(stat.st_mtime_ns for stat in stats), sum(stat.st_size for stat in stats))


def weight_files(folder: Path) -> list[Path]:
    """The weights in a diffusers folder."""
    return sorted(folder.glob("*.safetensors"))


def read_header(name: str, path: Path) -> Header:
    """The shapes of every tensor in a safetensors file. Raises WeightsMissing for one that is damaged or no such file.

    The file's length is held against the header, so that a download that stopped half way is told from a whole one.
    """
    if path.suffix != ".safetensors":
        raise WeightsMissing(
            f"{name} is a {path.suffix or 'nameless'} file, which can hold code and is not opened; "
            "convert it to .safetensors, or get that version of it"
        )
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LARGEST_HEADER_BYTES:
                raise ValueError("its header is too long")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        shapes = {key: tuple(tensor["shape"]) for key, tensor in header.items()}
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if path.stat().st_size != 8 + length + end:
            raise ValueError(f"it has {path.stat().st_size} bytes and should have {8 + length + end}")
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise WeightsMissing(f"{name} is damaged ({error}); fetch the file again") from error
    return shapes


def detect_folder(name: str, folder: Path) -> Detected:
    """What a ControlNet's diffusers folder was made for, by its configuration."""
    config = read_config(name, folder)
    for family in families().values():
        if family.control_folder(config):
            return Detected(family.name)
    usable = ", ".join(dict.fromkeys(known for family in families().values() for known in family.control_classes))
    return Detected(None, f"its {CONFIG_FILE} names the class {config.get('_class_name')}; usable are {usable}")


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """A diffusers folder's configuration. Raises WeightsMissing for one that is damaged."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise WeightsMissing(f"{name}: its {CONFIG_FILE} is damaged ({error}); fetch it again") from error
    return config


def detect(kind: AdapterKind, stamp: FileStamp) -> Detected:
    """What ``stamp`` was made for; read once a file. Raises WeightsMissing for a damaged one."""
    found = _detected.get((kind, stamp))
    if found is None:
        if stamp.path.is_dir():
            for file in weight_files(stamp.path):
                read_header(f"{stamp.name}/{file.name}", file)
            found = detect_folder(stamp.name, stamp.path)
        else:
            header = read_header(stamp.name, stamp.path)
            found = detect_lora(header) if kind == "lora" else detect_control(header)
        _detected[(kind, stamp)] = found
    return found


def collapsed(names: Iterable[str], locate: Callable[[str], Path | None]) -> list[str]:
    """ControlNets to choose from: of a diffusers folder its own name instead of its files'."""
    shown: dict[str, None] = {}
    for name in names:
        path = locate(name)
        if path is not None and len(Path(name).parts) > 1 and (path.parent / CONFIG_FILE).is_file():
            shown[Path(name).parent.as_posix()] = None
        else:
            shown[name] = None
    return list(shown)


def list_files(kind: AdapterKind, files: Iterable[tuple[str, Path]]) -> list[AdapterFile]:
    """Every file among ``files`` (name, path), and what is wrong with those that cannot be used."""
    found = []
    for name, path in files:
        try:
            stamp = stamp_file(name, path)
        except WeightsMissing:
            continue  # gone since the folder was read
        try:
            detected = detect(kind, stamp)
        except WeightsMissing as error:
            detected = Detected(None, str(error))
        found.append(AdapterFile(name, kind, detected.family, stamp.size, detected.problem))
    return found
