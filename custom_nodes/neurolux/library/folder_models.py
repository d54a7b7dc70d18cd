"""Diffusers folders as models: every folder with a ``model_index.json`` below ComfyUI's ``models/diffusers/``.

The family, the limits and the defaults follow from the folder's own configuration files. A ``neurolux.toml`` in the
folder may override ``title``, ``license``, ``commercial_use``, ``max_sequence_length``, ``[defaults]`` and
``[limits]``. This module opens no weights.
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..catalog.limits import Limits, SizeLimit
from ..catalog.models import Catalog, FolderSource, Model, SingleFilesSource
from ..catalog.reading import parse_limits
from ..families.parts.shapes import SMALLEST_SIDE
from ..families.registry import families
from ..families.spec import FamilySpec, ModelFacts
from ..weights.user_files import is_readable_name, open_regular, read_json

OVERRIDES_FILE = "neurolux.toml"
_log = logging.getLogger(__name__)
_parsed: dict[Path, tuple[tuple[int, ...], Model | None]] = {}


def find_folder_models(roots: Iterable[Path]) -> list[Model]:
    """The models in ``roots``, sorted by name. A folder that cannot be read is logged and skipped."""
    found: dict[str, Model] = {}
    for folder in model_folders(roots):
        if folder.name not in found and (model := folder_model(folder)) is not None:
            found[folder.name] = model
    return [found[name] for name in sorted(found)]


def model_folders(roots: Iterable[Path]) -> Iterator[Path]:
    """Folders directly below ``roots`` that hold a diffusers pipeline."""
    for root in roots:
        if root.is_dir():
            yield from (folder for folder in listed(root) if (folder / "model_index.json").is_file())


def listed(root: Path) -> list[Path]:
    """What is directly in a folder, sorted: nothing where it cannot be read. A name must be text, to be a model's."""
    try:
        found = sorted(root.iterdir())
    except OSError as error:
        _log.warning("NeuroLux: %s cannot be listed: %s", root, error)
        return []
    return [path for path in found if is_readable_name(path.name)]


def folder_model(folder: Path) -> Model | None:
    """The model in ``folder``, cached until one of its files changes; None if it is not a usable model."""
    stamp = folder_stamp(folder)
    cached = _parsed.get(folder)
    if cached is None or cached[0] != stamp:
        try:
            cached = (stamp, read_folder(folder))
        except Exception as error:  # its configuration may hold anything, and must not take other models down
            _log.warning("NeuroLux: %s is not used as a model: %s: %s", folder, type(error).__name__, error)
            cached = (stamp, None)
        _parsed[folder] = cached
    return cached[1]


def as_shipped(model: Model, shipped: Catalog) -> Model:
    """``model``, or the catalog model of the same name and family with this folder as its source.

    A folder with the name of a catalog model holds that model's weights, so the catalog's licence and limits apply.
    """
    known = shipped.models.get(model.name)
    if known is None or known.family != model.family:
        return model
    return replace(known, source=model.source, vae=None, scheduler=None, checkpoints={})


def folder_stamp(folder: Path) -> tuple[int, ...]:
    """A stamp that changes when a configuration file or a weight file of the folder is replaced."""
    files = [folder / "model_index.json", folder / OVERRIDES_FILE, *sorted(folder.glob("*/*.json"))]
    files += sorted(folder.glob("*/*.safetensors"))
    return tuple(modified_ns(path) for path in files)


def modified_ns(path: Path) -> int:
    """When a file was changed; 0 if it is gone, or is no file."""
    try:
        return path.stat().st_mtime_ns if path.is_file() else 0
    except OSError:
        return 0


def read_folder(folder: Path) -> Model | None:
    """The model in ``folder``; None if the pack does not support its pipeline class."""
    class_name = read_json(folder / "model_index.json").get("_class_name", "")
    for family in families().values():
        if class_name not in family.folders:
            continue
        facts = family.folders[class_name](lambda name: read_json(folder / name))
        if facts is None:
            return None
        model = own_model(folder.name, family, FolderSource(folder), facts)
        overrides_file = folder / OVERRIDES_FILE
        if overrides_file.is_file():
            model = overridden(model, read_overrides(overrides_file))
        return model
    return None


def own_model(name: str, family: FamilySpec, source: FolderSource | SingleFilesSource, facts: ModelFacts) -> Model:
    """A model that is not in the catalog, under its own name. Its files do not state a licence."""
    return Model(
        name=name,
        title=name,
        family=family.name,
        license="unknown",
        commercial_use=False,
        source=source,
        defaults=facts.defaults,
        limits=size_limits(facts.limits),
        max_sequence_length=facts.max_sequence_length,
        purpose=facts.purpose,
    )


def read_overrides(path: Path) -> dict[str, Any]:
    """The content of a ``neurolux.toml``. Raises OSError or ValueError."""
    with open_regular(path) as file:
        return tomllib.load(file)


def overridden(model: Model, overrides: Mapping[str, Any]) -> Model:
    """``model`` with the overrides of its ``neurolux.toml``. Raises TypeError for an unknown key."""
    changes = dict(overrides)
    defaults = replace(model.defaults, **changes.pop("defaults", {}))
    limits = parse_limits(changes.pop("limits", {}), model.limits)
    allowed = {"title", "license", "commercial_use", "max_sequence_length"}
    if unknown := set(changes) - allowed:
        raise TypeError(f"{OVERRIDES_FILE}: unknown keys {', '.join(sorted(unknown))}")
    return replace(model, defaults=defaults, limits=limits, **changes)


def size_limits(limits: Limits) -> Limits:
    """``limits`` with a lower minimum size than in the catalog, because folders may hold small models."""
    side = SizeLimit(minimum=SMALLEST_SIDE)
    return replace(limits, width=side, height=side)
