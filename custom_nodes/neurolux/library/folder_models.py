"""Diffusers folders as models: every folder with a ``model_index.json`` below ComfyUI's ``models/diffusers/``.

What a folder can do is read from its own configuration files. A ``neurolux.toml`` in it may override ``title``,
``license``, ``commercial_use``, ``max_sequence_length``, ``[defaults]`` and ``[limits]``. Weights are not opened here.
"""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..catalog.limits import (
    Defaults,
    GuidanceLimit,
    Limits,
    SizeLimit,
    StepLimit,
)
from ..catalog.models import (
    Catalog,
    FolderSource,
    Model,
    Purpose,
)
from ..catalog.reading import parse_limits

OVERRIDES_FILE = "neurolux.toml"
SMALLEST_SIDE = 64
LIGHTNING_STEPS = (1, 2, 4, 8)
FLUX_CLASSES: dict[str, Purpose] = {"FluxPipeline": "any", "FluxFillPipeline": "fill", "FluxKontextPipeline": "edit"}
_log = logging.getLogger(__name__)
_parsed: dict[Path, tuple[tuple[int, ...], Model | None]] = {}


def find_folder_models(roots: Iterable[Path]) -> list[Model]:
    """The models in ``roots``, by name; a folder that cannot be read is logged and left out."""
    found: dict[str, Model] = {}
    for folder in model_folders(roots):
        if folder.name not in found and (model := folder_model(folder)) is not None:
            found[folder.name] = model
    return [found[name] for name in sorted(found)]


def model_folders(roots: Iterable[Path]) -> Iterator[Path]:
    """Folders directly below ``roots`` that hold a diffusers pipeline."""
    for root in roots:
        if root.is_dir():
            yield from (folder for folder in sorted(root.iterdir()) if (folder / "model_index.json").is_file())


def folder_model(folder: Path) -> Model | None:
    """The model in ``folder``, read again only when one of its configuration files has changed."""
    stamp = folder_stamp(folder)
    cached = _parsed.get(folder)
    if cached is None or cached[0] != stamp:
        try:
            cached = (stamp, read_folder(folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("NeuroLux: %s is not used as a model: %s", folder, error)
            cached = (stamp, None)
        _parsed[folder] = cached
    return cached[1]


def as_shipped(model: Model, shipped: Catalog) -> Model:
    """A local folder named as a catalog model is that model's weights: it keeps the catalog's licence and limits."""
    known = shipped.models.get(model.name)
    if known is None or known.family != model.family:
        return model
    return replace(known, source=model.source, vae=None, scheduler=None, checkpoints={})


def folder_stamp(folder: Path) -> tuple[int, ...]:
    """Changes whenever a configuration file or a weight file of the folder is replaced."""
    files = [folder / "model_index.json", folder / OVERRIDES_FILE, *sorted(folder.glob("*/*.json"))]
    files += sorted(folder.glob("*/*.safetensors"))
    return tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in files)


def read_folder(folder: Path) -> Model | None:
    """The model in ``folder``; None where its pipeline class is not one that this pack runs."""
    class_name = read_json(folder / "model_index.json").get("_class_name")
    if class_name in FLUX_CLASSES:
        model = for_purpose(flux_folder(folder), FLUX_CLASSES[class_name])
    elif class_name == "StableDiffusionXLPipeline":
        model = sdxl_folder(folder)
    elif class_name == "StableDiffusionPipeline":
        model = sd15_folder(folder)
        if model is None:
            return None
    else:
        return None
    overrides_file = folder / OVERRIDES_FILE
    if overrides_file.is_file():
        model = overridden(model, tomllib.loads(overrides_file.read_text(encoding="utf-8")))
    return model


def flux_folder(folder: Path) -> Model:
    """FLUX: with guidance embeddings it behaves as dev does, without them as schnell."""
    transformer = read_json(folder / "transformer" / "config.json")
    dev = bool(transformer.get("guidance_embeds"))
    side = default_side(read_json(folder / "vae" / "config.json").get("sample_size"))
    defaults = Defaults(side, side, 28 if dev else 4, 3.5 if dev else 0.0)
    limits = Limits(num_inference_steps=StepLimit(1, 100 if dev else 50))
    return own_model(folder, "flux", defaults, limits, max_sequence_length=512 if dev else 256)


def for_purpose(model: Model, purpose: Purpose) -> Model:
    """FLUX.1 Fill and Kontext: dev, with the steps and the guidance that their authors recommend."""
    if purpose == "fill":
        defaults = replace(model.defaults, num_inference_steps=50, guidance_scale=30.0)
        limits = replace(model.limits, guidance_scale=GuidanceLimit(0.0, 100.0))
        return replace(model, purpose=purpose, defaults=defaults, limits=limits)
    if purpose == "edit":
        return replace(model, purpose=purpose, defaults=replace(model.defaults, guidance_scale=2.5))
    return model


def sdxl_folder(folder: Path) -> Model:
    """SDXL: a scheduler with trailing timesteps marks a Lightning model (no guidance, its own numbers of steps)."""
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    lightning = scheduler.get("timestep_spacing") == "trailing"
    side = unet_side(folder)
    if lightning:
        defaults = Defaults(side, side, 4, 0.0)
        limits = Limits(
            num_inference_steps=StepLimit(min(LIGHTNING_STEPS), max(LIGHTNING_STEPS), LIGHTNING_STEPS),
            guidance_scale=GuidanceLimit(0.0, 1.0),
        )
    else:
        defaults = Defaults(side, side, 30, 5.0)
        limits = Limits(negative_prompt=True)
    return own_model(folder, "sdxl", defaults, limits, max_sequence_length=77)


def sd15_folder(folder: Path) -> Model | None:
    """Stable Diffusion 1.5; None for version 2, whose encoder is another."""
    if read_json(folder / "unet" / "config.json").get("use_linear_projection"):
        return None
    side = unet_side(folder)
    limits = Limits(negative_prompt=True)
    return own_model(folder, "sd15", Defaults(side, side, 30, 7.5), limits, max_sequence_length=77)


def unet_side(folder: Path) -> int:
    """The side, in pixels, of the images that the UNet was trained on."""
    sample_size = read_json(folder / "unet" / "config.json").get("sample_size")
    scale = 2 ** (len(read_json(folder / "vae" / "config.json")["block_out_channels"]) - 1)
    return default_side(sample_size * scale if isinstance(sample_size, int) else None)


def own_model(folder: Path, family: str, defaults: Defaults, limits: Limits, *, max_sequence_length: int) -> Model:
    """The model in ``folder``, under the folder's name; nothing there tells its licence."""
    return Model(
        name=folder.name,
        title=folder.name,
        family=family,
        license="unknown",
        commercial_use=False,
        source=FolderSource(folder),
        defaults=defaults,
        limits=size_limits(limits),
        max_sequence_length=max_sequence_length,
    )


def overridden(model: Model, overrides: Mapping[str, Any]) -> Model:
    """``model`` with what its ``neurolux.toml`` says; an unknown key is an error (TypeError)."""
    changes = dict(overrides)
    defaults = replace(model.defaults, **changes.pop("defaults", {}))
    limits = parse_limits(changes.pop("limits", {}), model.limits)
    allowed = {"title", "license", "commercial_use", "max_sequence_length"}
    if unknown := set(changes) - allowed:
        raise TypeError(f"{OVERRIDES_FILE}: unknown keys {', '.join(sorted(unknown))}")
    return replace(model, defaults=defaults, limits=limits, **changes)


def size_limits(limits: Limits) -> Limits:
    """Folders may hold small models: sizes start lower than in the catalog."""
    side = SizeLimit(minimum=SMALLEST_SIDE)
    return replace(limits, width=side, height=side)


def default_side(pixels: object) -> int:
    """The size a model says it was made for, where that makes sense; else 1024."""
    if isinstance(pixels, int) and SMALLEST_SIDE <= pixels <= 2048 and pixels % 16 == 0:
        return pixels
    return 1024


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    return json.loads(path.read_text(encoding="utf-8"))
