"""The catalog's ControlNets, preprocessors and motion adapters: small models that work beside a large one.

Each is downloaded on first use. Like models.py, this module imports neither torch nor ComfyUI.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .models import RepoFiles
from .reading import CATALOG_FILE


@dataclass(frozen=True)
class HelperModel(RepoFiles):
    """A helper model in the catalog: its files on the Hub, its licence and its size."""

    name: str
    title: str
    license: str
    commercial_use: bool
    download_bytes: int


@dataclass(frozen=True)
class CatalogControlNet(HelperModel):
    """A ControlNet, with the family and the kinds of control images that it was trained for."""

    family: str
    kinds: tuple[str, ...]
    width: int
    """Width of the model's layers that it connects to; see ``adapters/control_choice.py``."""


@dataclass(frozen=True)
class CatalogMotion(HelperModel):
    """A motion adapter, with its family and its sampling settings."""

    family: str
    steps: int
    guidance: float
    scheduler: str
    """Class name in diffusers."""
    schedule: Mapping[str, Any]
    """Scheduler settings that override the model's own."""
    only_steps: int | None = None
    """The number of steps that a distilled adapter requires; None for any number."""


@dataclass(frozen=True)
class HelperCatalog:
    """All helper models by name, in order of preference."""

    controlnets: Mapping[str, CatalogControlNet]
    preprocessors: Mapping[str, HelperModel]
    motions: Mapping[str, CatalogMotion]


def read_helper_catalog(path: Path = CATALOG_FILE) -> HelperCatalog:
    """Read the helper models from a catalog file. Raises TypeError for an unknown key."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    return HelperCatalog(
        controlnets={
            name: CatalogControlNet(
                **{**entry, "name": name, "files": tuple(entry["files"]), "kinds": tuple(entry["kinds"])}
            )
            for name, entry in document.get("controlnets", {}).items()
        },
        preprocessors={
            name: HelperModel(**{**entry, "name": name, "files": tuple(entry["files"])})
            for name, entry in document.get("preprocessors", {}).items()
        },
        motions={
            name: CatalogMotion(**{**entry, "name": name, "files": tuple(entry["files"])})
            for name, entry in document.get("motions", {}).items()
        },
    )


@cache
def helper_catalog() -> HelperCatalog:
    """``models.toml``, read once."""
    return read_helper_catalog()
