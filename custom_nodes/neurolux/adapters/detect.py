"""What LoRA and ControlNet files were made for, by the names and shapes of their tensors.

Opens no weights and imports no torch: a folder of thousands of files can be listed, and a file for another model
refused, before anything is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import WeightsMissing
from ..families.files.identify import detect_control, detect_lora
from ..families.registry import families
from ..families.spec import Detected
from ..weights.stamps import CONFIG_FILE, FileStamp, read_config, read_described, read_shapes, stamp_file, weight_files
from ..weights.user_files import is_readable_name, printable_name

_log = logging.getLogger(__name__)
AdapterKind = Literal["lora", "controlnet"]


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA or a ControlNet that is on this machine."""

    name: str
    kind: AdapterKind
    family: str | None
    bytes: int
    problem: str | None = None


_detected: dict[tuple[AdapterKind, FileStamp], Detected] = {}


def detect_folder(name: str, folder: Path) -> Detected:
    """What a ControlNet's diffusers folder was made for, by its configuration."""
    config = read_config(name, folder)
    for family in families().values():
        if family.control_folder(config):
            return Detected(family.name, family.control_problem(config))
    usable = ", ".join(dict.fromkeys(known for family in families().values() for known in family.control_classes))
    return Detected(None, f"its {CONFIG_FILE} names the class {config.get('_class_name')}; usable are {usable}")


def detect(kind: AdapterKind, stamp: FileStamp) -> Detected:
    """What ``stamp`` was made for; read once a file. Raises WeightsMissing for a damaged one."""
    found = _detected.get((kind, stamp))
    if found is None:
        if stamp.path.is_dir():
            for file in weight_files(stamp.path):
                read_shapes(file)
            found = detect_folder(stamp.name, stamp.path)
        else:
            header, metadata = read_described(stamp.path)
            found = detect_lora(header, metadata) if kind == "lora" else detect_control(header)
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
        except Exception as error:  # the names and shapes in a file may be anything
            _log.warning("NeuroLux: %s cannot be identified", path, exc_info=True)
            detected = Detected(None, f"{name} cannot be identified ({error!r}); choose another file")
        if not is_readable_name(name):
            detected = Detected(None, f"the name {printable_name(name)} is not UTF-8; rename the file")
        problem = None if detected.problem is None else printable_name(detected.problem)
        found.append(AdapterFile(printable_name(name), kind, detected.family, stamp.size, problem))
    return found
