"""The routes that the pack adds to ComfyUI's own server: which models there are, and what is loaded."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from typing import Any

import comfy.model_management as mm
import torch
from aiohttp import web
from aiohttp.typedefs import Handler
from server import PromptServer

from ..catalog.limits import GuidanceLimit, SizeLimit, StepLimit
from ..catalog.models import Model, RepoSource
from ..library.adapter_folders import describe_adapters
from ..library.controlnets import describe_helpers
from ..library.inventory import inventory, source_name
from ..library.known_models import comfy_shelf, known_models
from ..library.single_files import Shelf
from ..loading.store import pipelines
from ..memory.placement import ComponentMemory
from ..planning.planner import ACCELERATORS
from ..stages.embedding_cache import embedding_cache
from ..version import pack_version
from ..weights.sources import model_status
from .input_cleaning import add_cleaning_route
from .plan import add_plan_route
from .publish import add_publish_route

MODELS_PATH = "/neurolux/models"
FREE_PATHS = ("/free", "/api/free")
_log = logging.getLogger(__name__)


def add_routes(routes: web.RouteTableDef) -> None:
    """Register the pack's routes (ComfyUI serves each under /api as well).

    A second copy of the pack in the same ComfyUI keeps out: aiohttp refuses to start with a path registered twice.
    """
    if any(getattr(route, "path", None) == MODELS_PATH for route in routes):
        _log.warning("NeuroLux: the pack is installed twice; remove one of its folders from custom_nodes")
        return

    if PromptServer.instance is not None:
        PromptServer.instance.app.middlewares.append(forget_prompts)

    @routes.get(MODELS_PATH)
    async def models(_: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(describe))

    add_plan_route(routes)
    add_publish_route(routes)
    add_cleaning_route(routes)


@web.middleware
async def forget_prompts(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Encoded prompts go when ``/free`` asks for its ``free_memory``, which drops ComfyUI's own cache as well."""
    answer = await handler(request)
    if request.method == "POST" and request.path in FREE_PATHS and (await request.json()).get("free_memory"):
        embedding_cache.clear()
    return answer


def describe() -> dict[str, Any]:
    """The device, the models and what is loaded, as JSON. May take two seconds when the network is probed."""
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
        "device_name": device_name(device),
        "cuda_available": torch.cuda.is_available(),
        "dtype": str(last.precision.main if last else expected_dtype(device)).removeprefix("torch."),
        "offload": last.placement.mode if last else "auto" if own_memory else "none",
        "vram_total_bytes": int(mm.get_total_memory(device)) if own_memory else None,
        "vram_free_bytes": int(mm.get_free_memory(device)) if own_memory else None,
        "current_model": loaded[-1] if loaded else None,
        "default_model": catalog.default,
        "models": [
            describe_model(model, model.name in loaded, memory.get(model.name), shelf)
            for model in catalog.models.values()
        ],
        "adapters": [*describe_adapters(), *describe_helpers()],
    }


def describe_model(model: Model, loaded: bool, memory: list[ComponentMemory] | None, shelf: Shelf) -> dict[str, Any]:
    """One model for the wire. ``memory``: its components where it has been loaded, measured now."""
    status = model_status(model)
    source = model.source
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
        "files": asdict(inventory(model, status, shelf)),
        "defaults": asdict(model.defaults),
        "limits": describe_limits(model),
    }


def describe_limits(model: Model) -> dict[str, Any]:
    """The limits under the wire's names."""
    limits = model.limits
    return {
        "width": describe_size(limits.width),
        "height": describe_size(limits.height),
        "num_inference_steps": describe_steps(limits.num_inference_steps),
        "guidance_scale": describe_guidance(limits.guidance_scale),
        "num_images": {"min": limits.num_images.minimum, "max": limits.num_images.maximum},
        "negative_prompt": limits.negative_prompt,
    }


def describe_size(limit: SizeLimit) -> dict[str, int]:
    """Pixels."""
    return {"min": limit.minimum, "max": limit.maximum, "multiple_of": limit.multiple_of}


def describe_steps(limit: StepLimit) -> dict[str, Any]:
    """A range, and the only numbers in it that work where there are such."""
    return {"min": limit.minimum, "max": limit.maximum, "choices": list(limit.choices) if limit.choices else None}


def describe_guidance(limit: GuidanceLimit) -> dict[str, float]:
    """A range."""
    return {"min": limit.minimum, "max": limit.maximum}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def expected_dtype(device: torch.device) -> torch.dtype:
    """What precision "auto" will most likely choose, before anything was loaded."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if mm.should_use_bf16(device) else torch.float16
