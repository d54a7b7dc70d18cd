"""Reads the catalog file ``models.toml`` into records. Unknown keys are errors, so typing mistakes are noticed."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..planning.records import ComponentShape
from .limits import Defaults, Limits
from .models import FACTS, Catalog, Checkpoint, FolderSource, Model, RepoFiles, RepoSource, SchedulerChoice, Source

CATALOG_FILE = Path(__file__).with_name("models.toml")


def read_catalog(path: Path = CATALOG_FILE) -> Catalog:
    """Read a catalog file. Raises TypeError for an unknown key."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    shared = document.get("limits", {})
    models = {name: parse_model(name, entry, shared, path.parent) for name, entry in document["models"].items()}
    return Catalog(models, document["fallback"], default=document["fallback"])


def parse_model(name: str, entry: Mapping[str, Any], shared_limits: Mapping[str, Any], base: Path) -> Model:
    """One ``[models.NAME]`` table as a record. Relative paths of bundled models are resolved against ``base``."""
    vae = entry.get("vae")
    scheduler = entry.get("scheduler")
    return Model(
        name=name,
        title=entry["title"],
        family=entry["family"],
        license=entry["license"],
        commercial_use=entry["commercial_use"],
        source=parse_source(entry["source"], base),
        defaults=Defaults(**entry["defaults"]),
        limits=parse_limits({**shared_limits, **entry.get("limits", {})}),
        max_sequence_length=entry["max_sequence_length"],
        vae=RepoFiles(vae["repo"], tuple(vae["files"])) if vae else None,
        scheduler=SchedulerChoice(scheduler["class"], scheduler["config"]) if scheduler else None,
        checkpoints={
            int(steps): Checkpoint(**checkpoint) for steps, checkpoint in entry.get("checkpoints", {}).items()
        },
        patterns={name: tuple(patterns) for name, patterns in entry.get("single_files", {}).items()},
        components={part: parse_shape(shape) for part, shape in entry.get("components", {}).items()},
        force_upcast_vae=entry.get("components", {}).get("vae", {}).get("force_upcast", True),
        purpose=entry.get("purpose", "any"),
        verified=parse_verified(entry.get("verified", {})),
        terms=entry.get("terms", ""),
        lora_learning_rate=entry.get("lora_learning_rate", 1e-4),
    )


def parse_verified(entry: Mapping[str, str]) -> Mapping[str, str]:
    """A ``verified`` table. Raises TypeError for an unknown fact."""
    if unknown := set(entry) - set(FACTS):
        raise TypeError(f"verified: unknown facts {', '.join(sorted(unknown))}; known are {', '.join(FACTS)}")
    return dict(entry)


def parse_shape(entry: Mapping[str, Any]) -> ComponentShape:
    """The size of one component. ``blocks`` has runs of ``[count, parameters of each]``, in order of use."""
    blocks = tuple(size for count, size in entry.get("blocks", []) for _ in range(count))
    return ComponentShape(
        entry["parameters"],
        blocks,
        entry["stored"],
        largest_outside=entry.get("largest_outside"),
        largest_inside=entry.get("largest_inside", 0),
    )


def parse_source(entry: Mapping[str, Any], base: Path) -> Source:
    """A ``source`` table as the record that its ``kind`` names. Raises ValueError for an unknown kind."""
    fields = dict(entry)
    kind = fields.pop("kind")
    if kind == "repo":
        return RepoSource(**{**fields, "files": tuple(fields["files"])})
    if kind == "bundled":
        return FolderSource((base / fields["path"]).resolve(), bundled=True)
    raise ValueError(f"unknown source kind {kind!r}: use 'repo' or 'bundled'")


def parse_limits(entry: Mapping[str, Any], base: Limits | None = None) -> Limits:
    """``base`` with the values of a ``limits`` table. Values that the table leaves out stay as they are."""
    base = base or Limits()
    changes: dict[str, Any] = {}
    for name, value in entry.items():
        if name in ("width", "height"):
            changes[name] = replace(getattr(base, name), **with_field_names(value))
        elif name == "num_inference_steps":
            choices = tuple(value["choices"]) if "choices" in value else base.num_inference_steps.choices
            bounds = with_field_names({key: bound for key, bound in value.items() if key != "choices"})
            if "choices" in value:
                bounds = {"minimum": min(value["choices"]), "maximum": max(value["choices"]), **bounds}
            changes[name] = replace(base.num_inference_steps, choices=choices, **bounds)
        elif name in ("guidance_scale", "num_images"):
            changes[name] = replace(getattr(base, name), **with_field_names(value))
        else:
            changes[name] = value
    return replace(base, **changes)


def with_field_names(entry: Mapping[str, Any]) -> dict[str, Any]:
    """``entry`` with the short names ``min`` and ``max`` replaced by the records' field names."""
    names = {"min": "minimum", "max": "maximum"}
    return {names.get(key, key): value for key, value in entry.items()}
