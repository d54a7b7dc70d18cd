"""Files into a diffusers pipeline. Imports diffusers when it is imported: import it late."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from ..catalog.models import Model
from ..errors import WeightsMissing
from ..families.architectures import FLUX_SCHEDULES, SDXL_SCHEDULE
from ..families.placed import Pipeline, PlacedFluxPipeline, PlacedSD15Pipeline, PlacedSDXLPipeline
from ..families.tokenizers import comfy_tokenizers
from ..planning.records import ComputeType, Plan, StorageType
from ..weights.dtypes import DTYPES
from ..weights.files import LoadMeter, LoadProgress, open_file
from ..weights.quantize import storable_layers, store_weight, stored_type
from ..weights.sources import ResolvedFiles
from .components import DENOISERS, ComponentFiles, component_files, shapes_of, vae_must_upcast
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
    """Load ``model`` into RAM, its weights in the types of ``plan``; ``device`` is where quantizing is computed.

    Raises WeightsMissing for files that are there but damaged, or do not belong together. ComfyUI runs nodes in
    inference mode; weights made there could never be changed again (pytorch issue 125989), so loading steps out of it.
    """
    with torch.inference_mode(False), torch.no_grad():
        components = component_files(model, variant, files)
        meter = LoadMeter(sum(component.bytes for component in components.values()), progress)
        plans = dict(plan.components)
        denoiser = DENOISERS[model.family]
        lora = files.single.lora if files.single is not None else None
        if lora is not None:  # a LoRA is added to numbers, and what comes out is stored in fewer bits
            plans[denoiser] = replace(plans[denoiser], storage=plans[denoiser].compute)
        parts = {name: load_component(component, plans[name], meter, device) for name, component in components.items()}
        meter.finish()
        try:
            parts |= other_parts(model, variant, files, components)
        except (OSError, ValueError) as error:
            raise WeightsMissing(
                f"model {model.name!r}: tokenizer or scheduler cannot be loaded ({error}); fetch its files again"
            ) from error
        pipeline = assembled(model, files, parts)
        pipeline.set_progress_bar_config(disable=True)
        if lora is not None:
            fuse(pipeline, lora)
            quantize(getattr(pipeline, denoiser), plan.components[denoiser].storage, plan.components[denoiser].compute)
    return pipeline


def assembled(model: Model, files: ResolvedFiles, parts: dict[str, Any]) -> Pipeline:
    """The pipeline with ``parts``."""
    if model.family == "flux":
        return PlacedFluxPipeline(**parts)
    if model.family == "sd15":
        unused: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return PlacedSD15Pipeline(**parts, **unused)
    zeros = True
    if files.pipeline is not None:
        index = json.loads((files.pipeline / "model_index.json").read_text(encoding="utf-8"))
        zeros = bool(index.get("force_zeros_for_empty_prompt", True))
    # The invisible watermark would be drawn by plain diffusers only where its package happens to be installed.
    options: dict[str, Any] = {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
    return PlacedSDXLPipeline(**parts, **options)


def other_parts(
    model: Model, variant: int | None, files: ResolvedFiles, components: dict[str, ComponentFiles]
) -> dict[str, Any]:
    """Tokenizers and scheduler."""
    if files.pipeline is None:
        tokenizers = comfy_tokenizers(model.family, model.max_sequence_length)
        scheduler = single_file_scheduler(model, components)
    else:
        index = json.loads((files.pipeline / "model_index.json").read_text(encoding="utf-8"))
        tokenizers = {
            name: getattr(transformers, index[name][1]).from_pretrained(files.pipeline / name, local_files_only=True)
            for name in ("tokenizer", "tokenizer_2")
            if name in index
        }
        scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(files.pipeline / "scheduler")
    if model.scheduler is not None:
        changes = {**model.scheduler.config}
        if variant is not None and variant in model.checkpoints:
            changes.update(model.checkpoints[variant].scheduler)
        scheduler = getattr(diffusers, model.scheduler.class_name).from_config(dict(scheduler.config), **changes)
    return {**tokenizers, "scheduler": scheduler}


def single_file_scheduler(model: Model, components: dict[str, ComponentFiles]) -> Any:
    """The scheduler that the model was made for; single files do not name one."""
    if model.family == "flux":
        guided = bool(components["transformer"].config["guidance_embeds"])
        return diffusers.FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULES[guided])
    return diffusers.EulerDiscreteScheduler(**SDXL_SCHEDULE)


def fuse(pipeline: Any, lora: Path) -> None:
    """Add a LoRA to the weights for good: a distilled model that is shipped as one (SDXL-Lightning)."""
    pipeline.load_lora_weights(open_file(lora))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def quantize(component: torch.nn.Module, storage: StorageType, compute: ComputeType) -> None:
    """Store the weights of a component that is loaded already in fewer bits."""
    kept = stored_type(storage, compute)
    if kept is None:
        return
    for _, layer in list(storable_layers(component)):
        store_weight(layer, layer.weight.data, kept, DTYPES[compute])
