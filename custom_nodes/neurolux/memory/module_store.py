"""The loaded modules that belong to no pipeline: ControlNets, motion adapters, preprocessors. One store for all.

Each is loaded once for every pipeline of the same number format and device, and is known to ComfyUI's memory manager
like a pipeline's own components. Whoever owns the records that refer to files (the pipeline store) says which files are
wanted when it sweeps.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch

from ..weights.dtypes import TYPE_NAMES
from ..weights.stamps import FileStamp
from .backends.choice import backend
from .cycles import let_go
from .patcher import ComponentPatcher, evicted, unload
from .placement import ComponentMemory

ModuleKind = Literal["controlnet", "motion", "preprocessor"]
MOST_UNUSED: dict[ModuleKind, int] = {"controlnet": 2, "motion": 1, "preprocessor": 3}
"""Modules that the present call does not use stay in memory up to this number."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModuleKey:
    """What makes two loads of a module the same."""

    kind: ModuleKind
    file: FileStamp
    dtype: torch.dtype
    device: torch.device


@dataclass(eq=False)
class LoadedModule:
    """A module's weights, and what the memory manager knows of them."""

    key: ModuleKey
    module: Any
    patcher: ComponentPatcher

    @property
    def file(self) -> FileStamp:
        """Where it came from."""
        return self.key.file


Loaded = TypeVar("Loaded", bound=LoadedModule)


class ModuleStore:
    """Loaded modules, least recently used first."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[ModuleKey, LoadedModule] = OrderedDict()
        self._lock = threading.RLock()

    def acquire(self, keys: Sequence[ModuleKey], build: Callable[[ModuleKey], Loaded]) -> list[Loaded]:
        """The modules of ``keys``, all of one kind, in their order; ``build`` makes those that are not in memory.

        Drops versions of the same files that have been replaced, and what is over the number that may stay unused.
        """
        self._drop_outdated(keys)
        found: list[Loaded] = []
        for key in keys:
            entry = self.get(key)
            entry = build(key) if entry is None else cast(Loaded, entry)
            with self._lock:
                self._loaded[key] = entry
                self._loaded.move_to_end(key)
            found.append(entry)
        kinds: set[ModuleKind] = {key.kind for key in keys}
        for kind in kinds:
            unused = [key for key in self.keys(kind) if key not in keys]
            for key in unused[: max(len(unused) - MOST_UNUSED[kind], 0)]:
                self.drop(key)
        return found

    def sweep(self, wanted: Collection[FileStamp] = (), kind: ModuleKind | None = None) -> None:
        """Drop what the manager took off its device (``/free``, an eviction), of one ``kind`` or of all.

        On a CPU that device is RAM, so the weights go. On a GPU those of the files that are ``wanted`` stay in RAM.
        """
        for key in self.keys(kind):
            entry = self._loaded.get(key)
            unwanted = key.device.type == "cpu" or key.file not in wanted
            if entry is not None and unwanted and evicted(entry.patcher):
                self.drop(key)

    def give_back(self, target: int, wanted: Collection[FileStamp]) -> int:
        """Drop what is not ``wanted``, least recently used first, until ``target`` bytes of RAM are available.

        Returns the bytes that were given back.
        """
        given = 0
        for key in self.keys():
            entry = self._loaded.get(key)
            if entry is None or key.file in wanted or backend().host().available >= target:
                continue
            given += entry.patcher.ram_bytes
            self.drop(key)
        return given

    def drop(self, key: ModuleKey) -> None:
        """Take one out of memory."""
        with self._lock:
            entry = self._loaded.pop(key, None)  # None: a handle that died swept while this sweep was running
        if entry is not None:
            _log.info("NeuroLux: freeing %s %s", key.kind, key.file.name)
            with let_go([entry.module]):
                unload(entry.patcher)
                del entry

    def clear(self) -> None:
        """Take all out of memory."""
        for key in self.keys():
            self.drop(key)

    def keys(self, kind: ModuleKind | None = None) -> list[ModuleKey]:
        """What is in memory, least recently used first."""
        with self._lock:
            return [key for key in self._loaded if kind in (None, key.kind)]

    def get(self, key: ModuleKey) -> LoadedModule | None:
        """The module of ``key``, if it is in memory."""
        return self._loaded.get(key)

    def memory(self, kind: ModuleKind) -> dict[str, list[ComponentMemory]]:
        """What is in memory of one kind, by file name, measured."""
        found: dict[str, list[ComponentMemory]] = {}
        for key in self.keys(kind):
            entry = self._loaded.get(key)
            if entry is not None:
                found.setdefault(key.file.name, []).append(measured(entry))
        return found

    def _drop_outdated(self, keys: Sequence[ModuleKey]) -> None:
        """Drop what was loaded from files that have been replaced since."""
        paths = {(key.kind, key.file.path) for key in keys}
        current = {key.file for key in keys}
        for key in self.keys():
            if (key.kind, key.file.path) in paths and key.file not in current:
                self.drop(key)


def measured(entry: LoadedModule) -> ComponentMemory:
    """Where the weights of ``entry`` are."""
    patcher = entry.patcher
    return ComponentMemory(
        component=entry.key.kind,
        device=str(patcher.current_loaded_device()),
        storage=TYPE_NAMES[entry.key.dtype],
        placement="stage",
        bytes=patcher.residency.total_bytes,
        device_bytes=patcher.loaded_size(),
    )


modules = ModuleStore()
"""This process's modules. ComfyUI runs one prompt at a time, so one store serves all."""
