"""The route that lists the models and what is loaded."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from typing import Any

import comfy.model_management as mm
import torch
from aiohttp import web

from ..catalog.limits import GuidanceLimit, SizeLimit, StepLimit
from ..catalog.models import Model, RepoSource
from ..library.adapter_folders import adapter_documents
from ..library.controlnets import auxiliary_documents
from ..library.inventory import ModelFiles, inventory, source_name
from ..library.known_models import comfy_shelf, known_models, recommended_model
from ..library.shelf import Shelf
from ..loading.store import pipelines
from ..memory.backends.choice import backend
from ..memory.backends.cuda import gpu_available
from ..memory.placement import ComponentMemory
from ..planning.records import ACCELERATORS
from ..version import pack_version
from ..weights.download.sources import ModelStatus, model_status

_log = logging.getLogger(__name__)
MODELS_PATH = "/neurolux/models"


def add_models_route(routes: web.RouteTableDef) -> None:
    """Register ``GET /neurolux/models``."""

    @routes.get(MODELS_PATH)
    async def models(_: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(models_document))


def models_document() -> dict[str, Any]:
    """The device, the models and what is loaded, as JSON. May take two seconds if it probes the network."""
    catalog = known_models()
    loaded = pipelines.loaded_models()
    memory = pipelines.memory()
    last = pipelines.last
    device: torch.device = mm.get_torch_device()
    own_memory = device.type in ACCELERATORS
    shelf = comfy_shelf()
    return {
        "pack_version": pack_version(),
        "device": device.type,
        "device_name": backend().name(device),
        "cuda_available": gpu_available(),
        "dtype": str(last.precision.main if last else expected_dtype(device)).removeprefix("torch."),
        "offload": last.placement.mode if last else "auto" if own_memory else "none",
        "vram_total_bytes": backend().total_memory(device) if own_memory else None,
        "vram_free_bytes": backend().free_memory(device) if own_memory else None,
        "current_model": loaded[-1] if loaded else None,
        "default_model": catalog.default,
        "recommended_model": recommended_model(),
        "models": [
            model_document(model, model.name in loaded, memory.get(model.name), shelf)
            for model in catalog.models.values()
        ],
        "adapters": [*adapter_documents(), *auxiliary_documents()],
    }


def model_document(model: Model, loaded: bool, memory: list[ComponentMemory] | None, shelf: Shelf) -> dict[str, Any]:
    """One model, as JSON. ``memory``: its components as measured now, if it has been loaded."""
    source = model.source
    try:
        status = model_status(model)
        files = inventory(model, status, shelf)
    except Exception as error:  # its files may hold anything, and must not take the other models down
        _log.warning("NeuroLux: the files of model %s cannot be read", model.name, exc_info=True)
        status = ModelStatus("missing", f"its files cannot be read: {error}")
        files = ModelFiles((), (), None, "its files cannot be read; fetch them again")
    wanted = source.download_bytes if isinstance(source, RepoSource) and status.state != "ready" else None
    return {
        "name": model.name,
        "title": model.title,
        "family": model.family,
        "license": model.license,
        "commercial_use": model.commercial_use,
        "status": status.state,
        "reason": status.reason,
        "loaded": loaded,
        "memory": [asdict(part) for part in memory] if memory is not None else None,
        "source": source_name(model),
        "download_bytes": wanted,
        "files": asdict(files),
        "defaults": asdict(model.defaults),
        "limits": limits_document(model),
    }


def limits_document(model: Model) -> dict[str, Any]:
    """A model's limits, under the API's names."""
    limits = model.limits
    return {
        "width": size_document(limits.width),
        "height": size_document(limits.height),
        "num_inference_steps": steps_document(limits.num_inference_steps),
        "guidance_scale": guidance_document(limits.guidance_scale),
        "num_images": {"min": limits.num_images.minimum, "max": limits.num_images.maximum},
        "negative_prompt": limits.negative_prompt,
    }


def size_document(limit: SizeLimit) -> dict[str, int]:
    """A side, in pixels."""
    return {"min": limit.minimum, "max": limit.maximum, "multiple_of": limit.multiple_of}


def steps_document(limit: StepLimit) -> dict[str, Any]:
    """A range, and the only numbers of steps in it that work, if the model has such."""
    return {"min": limit.minimum, "max": limit.maximum, "choices": list(limit.choices) if limit.choices else None}


def guidance_document(limit: GuidanceLimit) -> dict[str, float]:
    """A range."""
    return {"min": limit.minimum, "max": limit.maximum}


def expected_dtype(device: torch.device) -> torch.dtype:
    """What precision "auto" will most likely choose, before anything is loaded."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if backend().computes_bf16(device) else torch.float16
