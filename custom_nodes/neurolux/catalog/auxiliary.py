"""The catalog's ControlNets, preprocessors and motion adapters: small models that work beside a large one.

Each is downloaded on first use. Like models.py, this module imports neither torch nor ComfyUI.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .models import RepoFiles
from .reading import CATALOG_FILE, parse_verified


@dataclass(frozen=True)
class AuxiliaryModel(RepoFiles):
    """An auxiliary model in the catalog: its files on the Hub, its licence and its size."""

    name: str
    title: str
    license: str
    commercial_use: bool
    download_bytes: int
    verified: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Where its licence, its size and its settings were checked; a fact that is missing here could not be."""

    def __post_init__(self) -> None:
        parse_verified(self.verified)

    @property
    def license_text(self) -> str:
        """Its licence, with a remark if it could not be checked."""
        return self.license if self.verified.get("license") else f"{self.license} (not verified)"


@dataclass(frozen=True)
class CatalogControlNet(AuxiliaryModel):
    """A ControlNet, with the family and the kinds of control images that it was trained for."""

    family: str
    kinds: tuple[str, ...]
    width: int
    """Width of the model's layers that it connects to; see ``adapters/control/choice.py``."""


@dataclass(frozen=True)
class CatalogMotion(AuxiliaryModel):
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
class AuxiliaryCatalog:
    """All auxiliary models by name, in order of preference."""

    controlnets: Mapping[str, CatalogControlNet]
    preprocessors: Mapping[str, AuxiliaryModel]
    motions: Mapping[str, CatalogMotion]


def read_auxiliary_catalog(path: Path = CATALOG_FILE) -> AuxiliaryCatalog:
    """Read the auxiliary models from a catalog file. Raises TypeError for an unknown key or fact."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    return AuxiliaryCatalog(
        controlnets={
            name: CatalogControlNet(
                **{**entry, "name": name, "files": tuple(entry["files"]), "kinds": tuple(entry["kinds"])}
            )
            for name, entry in document.get("controlnets", {}).items()
        },
        preprocessors={
            name: AuxiliaryModel(**{**entry, "name": name, "files": tuple(entry["files"])})
            for name, entry in document.get("preprocessors", {}).items()
        },
        motions={
            name: CatalogMotion(**{**entry, "name": name, "files": tuple(entry["files"])})
            for name, entry in document.get("motions", {}).items()
        },
    )


@cache
def auxiliary_catalog() -> AuxiliaryCatalog:
    """``models.toml``, read once."""
    return read_auxiliary_catalog()
