"""The catalog as this ComfyUI sees it: ``models.toml`` and the folders that its configuration names."""

from __future__ import annotations

import os
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
from ..planning.records import ACCELERATORS
from ..weights.sources import is_here
from .folder_models import as_shipped, find_folder_models, folder_stamp
from .single_files import FOLDERS, Shelf, catalog_files, files_stamp

DEFAULT_MODEL_VARIABLE = "NEUROLUX_DEFAULT_MODEL"


@cache
def shipped_catalog() -> Catalog:
    """``models.toml``, read once."""
    return read_catalog()


def known_models() -> Catalog:
    """All models there are now. Folders are looked at anew each time, so a model that was just copied is there."""
    shipped = shipped_catalog()
    roots = [Path(root) for root in folder_paths.get_folder_paths("diffusers")]
    catalog = shipped.with_models(as_shipped(model, shipped) for model in find_folder_models(roots))
    catalog = catalog_files(catalog, comfy_shelf())
    return replace(catalog, default=default_model(catalog))


def comfy_shelf() -> Shelf:
    """The weight files in ComfyUI's model folders."""
    names = dict.fromkeys(FOLDERS.values())
    return Shelf({name: tuple(Path(root) for root in folder_paths.get_folder_paths(name)) for name in names})


def default_model(catalog: Catalog) -> str:
    """The model of a request that names none: the one in the environment, else the best that can be had here.

    Without a GPU and without weights of a large model, that is the fallback, which ships with the pack: the large one
    would be a download of hours for images of minutes, and nobody asked for it.
    """
    chosen = os.environ.get(DEFAULT_MODEL_VARIABLE)
    if chosen and chosen in catalog.models:
        return chosen
    if mm.get_torch_device().type in ACCELERATORS or catalog.fallback == catalog.default:
        return catalog.default
    fallback = catalog.fallback
    family = catalog.models[catalog.default].family
    large = sorted(set(shipped_catalog().names(family)) - {fallback}, key=lambda name: name != catalog.default)
    return next((name for name in large if is_here(catalog.models[name])), fallback)


def model_stamp(model: Model) -> tuple[int, ...]:
    """Changes when a local model's files are replaced, so that it is loaded again; empty for a downloaded one."""
    if isinstance(model.source, FolderSource):
        return folder_stamp(model.source.path)
    if isinstance(model.source, SingleFilesSource):
        return files_stamp(model.source)
    return tuple(number for source in model.local.values() for number in files_stamp(source))
