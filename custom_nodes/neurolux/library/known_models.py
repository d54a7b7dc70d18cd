"""The models that this ComfyUI knows: ``models.toml`` and the models in ComfyUI's model folders."""

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
from ..weights.sources import is_here, needs_account
from .folder_models import as_shipped, find_folder_models, folder_stamp
from .shelf import FOLDERS, Shelf
from .single_files import catalog_files, files_stamp

DEFAULT_MODEL_VARIABLE = "NEUROLUX_DEFAULT_MODEL"


@cache
def shipped_catalog() -> Catalog:
    """``models.toml``, read once."""
    return read_catalog()


def known_models() -> Catalog:
    """All models known now. Scans the folders on each call, so a model that was just copied is included."""
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
    """The model for requests that name none: the one in the environment variable, else the best for this machine.

    On a machine without a GPU and without the weights of a large model, it is the fallback, which ships with the pack.
    The large model would be an unrequested download of hours, for images that take minutes. With a GPU, a model whose
    weights nobody can fetch without an account gives way to one that everybody can.
    """
    chosen = os.environ.get(DEFAULT_MODEL_VARIABLE)
    if chosen and chosen in catalog.models:
        return chosen
    best = catalog.models[catalog.default]
    if mm.get_torch_device().type in ACCELERATORS or catalog.fallback == catalog.default:
        return catalog.default if is_here(best) or not needs_account(best) else catalog.ungated
    fallback = catalog.fallback
    family = catalog.models[catalog.default].family
    large = sorted(set(shipped_catalog().names(family)) - {fallback}, key=lambda name: name != catalog.default)
    return next((name for name in large if is_here(catalog.models[name])), fallback)


def model_stamp(model: Model) -> tuple[int, ...]:
    """A stamp that changes when a local model's files are replaced, so it is reloaded; empty for downloaded models."""
    if isinstance(model.source, FolderSource):
        return folder_stamp(model.source.path)
    if isinstance(model.source, SingleFilesSource):
        return files_stamp(model.source)
    return tuple(number for source in model.local.values() for number in files_stamp(source))
