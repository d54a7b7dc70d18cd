"""Reads the catalog: ``models.toml`` as records. Unknown keys are errors, so that a typing mistake is noticed."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..planning.records import ComponentShape
from .limits import Defaults, Limits
from .models import Catalog, Checkpoint, FolderSource, Model, RepoFiles, RepoSource, SchedulerChoice, Source

CATALOG_FILE = Path(__file__).with_name("models.toml")


def read_catalog(path: Path = CATALOG_FILE) -> Catalog:
    """Read a catalog file. Unknown keys are errors, so that a typing mistake does not pass in silence."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    shared = document.get("limits", {})
    models = {name: parse_model(name, entry, shared, path.parent) for name, entry in document["models"].items()}
    return Catalog(models=models, default=document["default"], fallback=document.get("fallback", document["default"]))


def parse_model(name: str, entry: Mapping[str, Any], shared_limits: Mapping[str, Any], base: Path) -> Model:
    """One ``[models.NAME]`` table as a record; relative bundled paths are resolved against ``base``."""
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
        lora_learning_rate=entry.get("lora_learning_rate", 1e-4),
    )


def parse_shape(entry: Mapping[str, Any]) -> ComponentShape:
    """One component's size. ``blocks`` is in runs of ``[how many, parameters of each]``, in order of use."""
    blocks = tuple(size for count, size in entry.get("blocks", []) for _ in range(count))
    return ComponentShape(entry["parameters"], blocks, entry["stored"])


def parse_source(entry: Mapping[str, Any], base: Path) -> Source:
    """A ``source`` table: its ``kind`` says which record it is."""
    fields = dict(entry)
    kind = fields.pop("kind")
    if kind == "repo":
        return RepoSource(**{**fields, "files": tuple(fields["files"])})
    if kind == "bundled":
        return FolderSource((base / fields["path"]).resolve(), bundled=True)
    raise ValueError(f"unknown source kind {kind!r}: use 'repo' or 'bundled'")


def parse_limits(entry: Mapping[str, Any], base: Limits | None = None) -> Limits:
    """A ``limits`` table over ``base``: what it does not name stays as it is there."""
    base = base or Limits()
    changes: dict[str, Any] = {}
    for name, value in entry.items():
        if name in ("width", "height"):
            changes[name] = replace(getattr(base, name), **spelled_out(value))
        elif name == "num_inference_steps":
            choices = tuple(value["choices"]) if "choices" in value else base.num_inference_steps.choices
            bounds = spelled_out({key: bound for key, bound in value.items() if key != "choices"})
            if "choices" in value:
                bounds = {"minimum": min(value["choices"]), "maximum": max(value["choices"]), **bounds}
            changes[name] = replace(base.num_inference_steps, choices=choices, **bounds)
        elif name in ("guidance_scale", "num_images"):
            changes[name] = replace(getattr(base, name), **spelled_out(value))
        else:
            changes[name] = value
    return replace(base, **changes)


def spelled_out(entry: Mapping[str, Any]) -> dict[str, Any]:
    """``min`` and ``max``, as files and the wire write them, under the records' names."""
    names = {"min": "minimum", "max": "maximum"}
    return {names.get(key, key): value for key, value in entry.items()}
