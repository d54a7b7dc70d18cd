"""The pack's pipelines in this process, on tiny models: what a test of memory or parity begins with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from neurolux.loading.handle import PipelineHandle
    from neurolux.loading.loaded import LoadedPipeline
    from neurolux.memory.streaming import Residency
    from neurolux.planning.records import ComponentPlan

LATENT = {"samples": torch.zeros(1, 4, 16, 16)}
PROMPT = "a cat"


def handle_for(folder: Path, **choices: Any) -> PipelineHandle:
    """A loaded tiny model."""
    from neurolux.library.folder_models import folder_model
    from neurolux.loading.store import load_handle

    model = folder_model(folder)
    assert model is not None
    return load_handle(model, (), **choices)


def borrow(handle: PipelineHandle) -> LoadedPipeline:
    """The pipeline of ``handle``, as a stage gets it."""
    from neurolux.adapters.borrow import borrow

    return borrow(handle)


def with_controls(handle: PipelineHandle, *controls: dict[str, Any]) -> PipelineHandle:
    """``handle`` with ControlNets: the ``path`` of each, and what Apply ControlNet is told."""
    from neurolux.adapters.control.applied import make_control
    from neurolux.weights.stamps import stamp_file

    for control in controls:
        values = {"strength": 0.7, "start": 0.0, "end": 1.0, "mode": "auto", **control}
        path = values.pop("path")
        added = make_control(handle.model, stamp_file(path.name, path), **values)
        handle = replace(handle, controls=(*handle.controls, added))
    return handle


def sample_with(
    loaded: LoadedPipeline,
    handle: PipelineHandle,
    steps: int = 2,
    *,
    prompt: str = PROMPT,
    negative: str | None = None,
    guidance: float = -1.0,
    seed: int = 7,
) -> torch.Tensor:
    """One image of 128x128, decoded: (1, H, W, 3) in [0, 1]."""
    from neurolux.stages.decode import decode
    from neurolux.stages.prompts.encode import encode
    from neurolux.stages.sample import plan_sample, sample

    with torch.inference_mode():  # as ComfyUI runs nodes
        positive = encode(loaded, prompt)
        against = encode(loaded, negative) if negative is not None else None
        request = plan_sample(handle.model, handle.spec.variant, LATENT, seed, steps, guidance)
        return decode(loaded, sample(loaded, request, positive, against))


def make_image(images: torch.Tensor) -> Image.Image:
    """The first of ``images``, as the Result node saves it."""
    return Image.fromarray((images[0].clamp(0, 1).numpy() * 255).round().astype(np.uint8))


def budget_for(resident: float) -> Callable[[Residency, ComponentPlan], float]:
    """A plan's budget on a device with room for a share ``resident`` of what can be streamed: tiny models fit whole."""

    def budget(residency: Residency, planned: ComponentPlan) -> float:
        if planned.placement not in ("stream", "disk", "sequential"):
            return float("inf")
        streamable = sum(unit.nbytes for unit in residency.units)
        share = 0.0 if planned.placement == "sequential" else resident
        return (
            residency.rest.nbytes
            + share * streamable
            + 2 * max((unit.buffer_bytes for unit in residency.units), default=0)
        )

    return budget
