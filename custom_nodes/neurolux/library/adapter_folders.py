"""LoRA and ControlNet files in ComfyUI's own model folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import folder_paths

from ..adapters.detect import AdapterFile, AdapterKind, collapsed, list_files
from ..errors import InvalidParameter
from ..memory.module_store import modules
from ..memory.placement import ComponentMemory
from ..weights.stamps import FileStamp, stamp_file

FOLDERS: dict[AdapterKind, str] = {"lora": "loras", "controlnet": "controlnet"}
TITLES: dict[AdapterKind, str] = {"lora": "LoRA", "controlnet": "ControlNet"}


def adapter_names(kind: AdapterKind) -> list[str]:
    """The available names. A diffusers folder is listed once, by its own name."""
    names = folder_paths.get_filename_list(FOLDERS[kind])
    return collapsed(names, lambda name: locate(kind, name)) if kind == "controlnet" else names


def locate(kind: AdapterKind, name: str) -> Path | None:
    """The path of the file or diffusers folder called ``name``; None if there is none."""
    for root in folder_paths.get_folder_paths(FOLDERS[kind]):
        path = Path(root, name)
        try:
            if path.exists() and is_below(name):
                return path
        except (OSError, RuntimeError):  # no access, a name that is too long, a loop of links
            continue
    return None


def is_below(name: str) -> bool:
    """Whether a name stays in its folder. Links in the folder are the user's own, and lead where they like."""
    parts = Path(name.replace("\\", "/")).parts
    return not Path(name).is_absolute() and not Path(name).drive and ".." not in parts


def find_adapter(kind: AdapterKind, name: str, more: tuple[str, ...] = ()) -> FileStamp:
    """The stamp of the file called ``name``. Raises InvalidParameter, which lists the known names and ``more``."""
    path = locate(kind, name)
    if path is None or not name:
        known = ", ".join([*adapter_names(kind), *more]) or "none"
        raise InvalidParameter(
            kind,
            f"there is no {TITLES[kind]} {name!r}; known are {known}. "
            f"Put the file into ComfyUI's models/{FOLDERS[kind]}/ and reload the node's list",
        )
    return stamp_file(name, path)


def stamp_key(kind: AdapterKind, name: str) -> str:
    """Changes whenever the file called ``name`` is replaced."""
    path = locate(kind, name)
    return stamp_file(name, path).key if path is not None and name else ""


def adapter_documents() -> list[dict[str, Any]]:
    """Every LoRA and ControlNet as JSON: name, kind, family, bytes, why it cannot be used, where its weights are."""
    memory = modules.memory("controlnet")
    found = []
    for kind in FOLDERS:
        paths = [(name, locate(kind, name)) for name in adapter_names(kind)]
        found += list_files(kind, [(name, path) for name, path in paths if path is not None])
    return [{**asdict(adapter), "memory": memory_of(adapter, memory)} for adapter in found]


def memory_of(adapter: AdapterFile, memory: Mapping[str, list[ComponentMemory]]) -> list[dict[str, Any]] | None:
    """Where a ControlNet's weights are; None if it is not loaded."""
    if adapter.kind != "controlnet" or adapter.name not in memory:
        return None
    return [asdict(part) for part in memory[adapter.name]]
