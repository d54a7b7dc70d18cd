"""The models that this ComfyUI knows: ``models.toml`` and the models in ComfyUI's model folders."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import comfy.model_management as mm
import folder_paths

from ..catalog.models import (
    Catalog,
    FolderSource,
    Model,
    SingleFilesSource,
)
from ..catalog.reading import read_catalog
from ..memory.machine import whole_machine
from ..planning.records import Machine
from .folder_models import folder_stamp
from .recommendation import Candidate, Choice, choose, models_here, own_choice, plan_model, with_local
from .shelf import FOLDERS, Shelf
from .single_files import files_stamp


@cache
def shipped_catalog() -> Catalog:
    """``models.toml``, read once."""
    return read_catalog()


def known_models() -> Catalog:
    """All models known now. Scans the folders on each call, so a model that was just copied is included."""
    shipped = shipped_catalog()
    roots = [Path(root) for root in folder_paths.get_folder_paths("diffusers")]
    catalog = with_local(shipped, roots, comfy_shelf())
    here = models_here(shipped, catalog)
    return replace(catalog, default=own_choice(catalog) or choice_of({*here, shipped.fallback}, here).default)


def recommended_model() -> str:
    """The best model for this machine, downloaded or not; the user's own default if there is one."""
    catalog, shipped = known_models(), shipped_catalog()
    return own_choice(catalog) or choice_of(shipped.models, models_here(shipped, catalog)).best.model.name


def choice_of(names: Iterable[str], here: Collection[str]) -> Choice:
    """The choice between shipped models. It counts all memory of this machine: what is free changes all the time."""
    machine = whole_machine(mm.get_torch_device())
    return choose([shipped_plan(name, machine) for name in names], here, shipped_catalog().fallback)


@cache
def shipped_plan(name: str, machine: Machine) -> Candidate:
    """The plan of a shipped model, made once."""
    return plan_model(shipped_catalog().models[name], machine)


def comfy_shelf() -> Shelf:
    """The weight files in ComfyUI's model folders."""
    names = dict.fromkeys(FOLDERS.values())
    return Shelf({name: tuple(Path(root) for root in folder_paths.get_folder_paths(name)) for name in names})


def model_stamp(model: Model) -> tuple[int, ...]:
    """A stamp that changes when a local model's files are replaced, so it is reloaded; empty for downloaded models."""
    if isinstance(model.source, FolderSource):
        return folder_stamp(model.source.path)
    if isinstance(model.source, SingleFilesSource):
        return files_stamp(model.source)
    return tuple(number for source in model.local.values() for number in files_stamp(source))
