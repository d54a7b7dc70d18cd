"""The catalog's ControlNets, preprocessors and motion adapters: small models that help a large one.

Each is downloaded on first use.

Like catalog.py this imports neither torch nor ComfyUI.
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
    """A small model of the catalog: its files on the Hub, its licence and its size."""

    name: str
    title: str
    license: str
    commercial_use: bool
    download_bytes: int


@dataclass(frozen=True)
class CatalogControlNet(HelperModel):
    """A ControlNet: for which models, and for which kinds of control images."""

    family: str
    kinds: tuple[str, ...]
    width: int
    """Of the layers that it meets in the model; see ``adapters/control_choice.py``."""


@dataclass(frozen=True)
class CatalogMotion(HelperModel):
    """A motion adapter: for which models, and how it is sampled."""

    family: str
    steps: int
    guidance: float
    scheduler: str
    """Class name in diffusers."""
    schedule: Mapping[str, Any]
    """What the scheduler's configuration has beyond the model's own."""
    only_steps: int | None = None
    """The number of steps that a distilled adapter was made for."""


@dataclass(frozen=True)
class HelperCatalog:
    """All of them, by name, the one to prefer first."""

    controlnets: Mapping[str, CatalogControlNet]
    preprocessors: Mapping[str, HelperModel]
    motions: Mapping[str, CatalogMotion]


def read_helper_catalog(path: Path = CATALOG_FILE) -> HelperCatalog:
    """Read them from a catalog file. An unknown key is an error (TypeError)."""
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
