"""The working memory of each stage of a loaded pipeline in bytes, and how to run a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from ..families.registry import family_of
from ..memory.out_of_memory import with_memory_errors
from ..planning import costs
from ..planning.records import ComputeType
from .loaded import LoadedPipeline
from .replanning import go_leaner

T = TypeVar("T")


def encoding_memory(loaded: LoadedPipeline, encoders: Sequence[str]) -> int:
    """Working memory for encoding one prompt."""
    family = family_of(loaded.model.family).costs
    most = max((costs.encode_bytes(family, loaded.placement.planned(name).compute) for name in encoders), default=0)
    return most + widening_memory(loaded, encoders)


def sampling_memory(loaded: LoadedPipeline, width: int, height: int, *, passes: int = 1, frames: int = 1) -> int:
    """Working memory for one denoising step: ``passes`` of the denoiser at once, for ``frames`` of a video."""
    name = loaded.denoiser_name
    compute = loaded.placement.planned(name).compute
    family = family_of(loaded.model.family).costs
    step = costs.sample_bytes(family, width, height, compute, passes=passes, frames=frames)
    return step + widening_memory(loaded, [name])


def decoding_memory(loaded: LoadedPipeline, width: int, height: int) -> int:
    """Working memory for decoding one image, whole or in the plan's tiles."""
    plan = loaded.placement.plan
    family = family_of(loaded.model.family).costs
    return costs.decode_bytes(family, width, height, loaded.placement.planned("vae").compute, tile=plan.vae_tile)


def image_encoding_memory(loaded: LoadedPipeline, width: int, height: int) -> int:
    """Working memory for encoding one image with the VAE, whole or in the plan's tiles."""
    tile = loaded.placement.plan.vae_tile
    family = family_of(loaded.model.family).costs
    return costs.encode_image_bytes(family, width, height, image_encoding_type(loaded), tile=tile)


def image_encoding_type(loaded: LoadedPipeline) -> ComputeType:
    """The type that the VAE encodes images in.

    diffusers computes the encoder of an SDXL VAE in fp32 (its ``force_upcast``); so does the pack, unless the weights
    are streamed and never there at once.
    """
    config: Any = loaded.pipe.vae.config
    planned = loaded.placement.planned("vae")
    upcast = bool(config.get("force_upcast")) and family_of(loaded.model.family).latent.upcasts_encoder
    return "fp32" if upcast and planned.placement in ("resident", "stage") else planned.compute


def widening_memory(loaded: LoadedPipeline, names: Sequence[str]) -> int:
    """Bytes of the largest layer's weights in the compute type; 0 if no component is stored in another type."""
    planned = {name: loaded.placement.planned(name) for name in names if name in loaded.shapes}
    return max(
        (costs.widening_bytes(loaded.shapes[name], part.storage, part.compute) for name, part in planned.items()),
        default=0,
    )


def run_stage(loaded: LoadedPipeline, stage: str, remedy: str, work: Callable[[], T]) -> T:
    """Run a stage of ``loaded`` in ``with_memory_errors``. The pipeline stays in memory meanwhile."""
    with loaded.placement.borrowed():
        return with_memory_errors(stage, remedy, work, partial(go_leaner, loaded))
