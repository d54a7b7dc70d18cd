"""Builds a diffusers pipeline from files. Importing this module imports diffusers, so import it late."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from ..catalog.models import Model
from ..errors import WeightsMissing
from ..families.parts.placed import Pipeline, placed_class
from ..families.registry import family_of
from ..planning.records import ComputeType, Plan, StorageType
from ..weights.download.sources import ResolvedFiles
from ..weights.dtypes import DTYPES
from ..weights.files import LoadMeter, LoadProgress, open_file
from ..weights.quantized.storage import storable_layers, store_weight, stored_type
from ..weights.user_files import read_json
from .components import ComponentFiles, component_files, file_schedule, shapes_of, vae_must_upcast
from .fill import load_component

__all__ = ["build_pipeline", "shapes_of", "vae_must_upcast"]
CPU = torch.device("cpu")


def build_pipeline(
    model: Model,
    variant: int | None,
    files: ResolvedFiles,
    plan: Plan,
    progress: LoadProgress | None = None,
    device: torch.device = CPU,
) -> Pipeline:
    """Load ``model`` into RAM, with its weights in the types of ``plan``. ``device`` is where weights are quantized.

    Raises WeightsMissing for files that are damaged or do not belong together. ComfyUI runs nodes in inference mode.
    Weights created there could never be changed again (pytorch issue 125989), so loading leaves inference mode.
    """
    with torch.inference_mode(False), torch.no_grad():
        components = component_files(model, variant, files)
        meter = LoadMeter(sum(component.bytes for component in components.values()), progress)
        plans = dict(plan.components)
        denoiser = family_of(model.family).denoiser
        lora = files.single.lora if files.single is not None else None
        if lora is not None:  # a LoRA can only be merged into full weights; the result is quantized
            plans[denoiser] = replace(plans[denoiser], storage=plans[denoiser].compute)
        parts = {name: load_component(component, plans[name], meter, device) for name, component in components.items()}
        meter.finish()
        try:
            parts |= other_parts(model, variant, files, components)
        except (OSError, ValueError) as error:
            raise WeightsMissing(
                f"model {model.name!r}: tokenizer or scheduler cannot be loaded ({error}); fetch its files again"
            ) from error
        pipeline = assembled(model, read_index(files), parts)
        if lora is not None:
            fuse(pipeline, lora)
            blocks = components[denoiser].part.blocks.prefixes
            kept = plan.components[denoiser]
            quantize(getattr(pipeline, denoiser), blocks, kept.storage, kept.compute)
    return pipeline


def assembled(model: Model, index: dict[str, Any], parts: dict[str, Any]) -> Pipeline:
    """A pipeline with ``parts`` as its components. ``index``: its ``model_index.json``, or nothing."""
    family = family_of(model.family)
    options = family.pipeline_options(index)
    pipeline = placed_class(family.pipelines["text-to-image", None])(**parts, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def read_index(files: ResolvedFiles) -> dict[str, Any]:
    """The pipeline's ``model_index.json``; empty for single files."""
    if files.pipeline is None:
        return {}
    try:
        return read_json(files.pipeline / "model_index.json")
    except (OSError, ValueError) as error:
        raise WeightsMissing(f"{files.pipeline}: its model_index.json is damaged ({error}); fetch it again") from error


def other_parts(
    model: Model, variant: int | None, files: ResolvedFiles, components: dict[str, ComponentFiles]
) -> dict[str, Any]:
    """The tokenizers and the scheduler, by component name."""
    if files.pipeline is None:
        tokenizers, scheduler = single_file_parts(model, components)
    else:
        index = read_index(files)
        tokenizers = {
            name: getattr(transformers, entry[1]).from_pretrained(files.pipeline / name, local_files_only=True)
            for name, entry in index.items()
            if name.startswith("tokenizer")
        }
        scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(files.pipeline / "scheduler")
    if model.scheduler is not None:
        changes = {**model.scheduler.config}
        if variant is not None and variant in model.checkpoints:
            changes.update(model.checkpoints[variant].scheduler)
        scheduler = getattr(diffusers, model.scheduler.class_name).from_config(dict(scheduler.config), **changes)
    return {**tokenizers, "scheduler": scheduler}


def single_file_parts(model: Model, components: dict[str, ComponentFiles]) -> tuple[dict[str, Any], Any]:
    """The family's tokenizers and scheduler, for single files, which contain neither."""
    family = family_of(model.family)
    if family.tokenizers is None or family.scheduler is None:
        raise WeightsMissing(f"{family.title} cannot be loaded from single files; use a diffusers folder of the model")
    scheduler = family.scheduler({name: component.config for name, component in components.items()})
    stated = file_schedule(family, components[family.denoiser])
    made = getattr(diffusers, scheduler.class_name)(**{**scheduler.config, **stated})
    return family.tokenizers(model.max_sequence_length), made


def fuse(pipeline: Any, lora: Path) -> None:
    """Merge a LoRA into the weights permanently: for distilled models published as a LoRA (SDXL-Lightning)."""
    pipeline.load_lora_weights(open_file(lora))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def quantize(component: torch.nn.Module, blocks: tuple[str, ...], storage: StorageType, compute: ComputeType) -> None:
    """Store the weights of a component in fewer bits after it was loaded."""
    kept = stored_type(storage, compute)
    if kept is None:
        return
    for _, layer in list(storable_layers(component, blocks)):
        store_weight(layer, layer.weight.data, kept, DTYPES[compute])
