"""How much device memory a stage works with, and what happens when it was not enough."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import comfy.model_management as mm

from ..errors import OutOfMemory
from ..families.registry import family_of
from ..planning import costs

if TYPE_CHECKING:
    from .registry import LoadedPipeline

T = TypeVar("T")
_log = logging.getLogger(__name__)


def encode_room(loaded: LoadedPipeline, encoders: Sequence[str]) -> int:
    """Working memory of encoding one prompt."""
    most = max((costs.encode_bytes(loaded.placement.planned(name).compute) for name in encoders), default=0)
    return most + widening(loaded, encoders)


def sample_room(loaded: LoadedPipeline, width: int, height: int) -> int:
    """Working memory of one denoising step of one image."""
    name = loaded.denoiser_name
    compute = loaded.placement.planned(name).compute
    return costs.sample_bytes(family_of(loaded.model.family).costs, width, height, compute) + widening(loaded, [name])


def decode_room(loaded: LoadedPipeline, width: int, height: int) -> int:
    """Working memory of decoding one image, whole or in the plan's tiles."""
    plan = loaded.placement.plan
    return costs.decode_bytes(width, height, loaded.placement.planned("vae").compute, tile=plan.vae_tile)


def widening(loaded: LoadedPipeline, names: Sequence[str]) -> int:
    """Room for one layer's weights in the type that is computed in, where they are stored in fewer bits."""
    planned = {name: loaded.placement.planned(name) for name in names if name in loaded.shapes}
    return max(
        (
            costs.largest_layer(loaded.shapes[name]) * costs.COMPUTE_BYTES[part.compute]
            for name, part in planned.items()
            if part.storage != part.compute
        ),
        default=0,
    )


def with_memory_errors(
    stage: str, remedy: str, work: Callable[[], T], go_leaner: Callable[[], str | None] | None = None
) -> T:
    """Run ``work``; when memory runs out, free everything, and run it once more if ``go_leaner`` finds a way.

    ``go_leaner`` changes the plan and says how, or returns None. Raises OutOfMemory with the remedy, after the
    ``except`` block: inside it the traceback would keep the failed stage's tensors alive.
    """
    detail = attempt = None
    for attempt in (1, 2):
        try:
            return work()
        except (mm.OOM_EXCEPTION, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            detail = str(error).split("\n")[0]
        mm.unload_all_models()
        mm.soft_empty_cache()
        said = go_leaner() if go_leaner is not None and attempt == 1 else None
        if said is None:
            break
        _log.warning("NeuroLux: out of memory while %s (%s); once more with %s", stage, detail, said)
    again = " again, with a leaner plan" if attempt == 2 else ""
    raise OutOfMemory(f"out of memory{again} while {stage}: {detail}. {remedy}")


def run_stage(loaded: LoadedPipeline, stage: str, remedy: str, work: Callable[[], T]) -> T:
    """``with_memory_errors`` for a stage of ``loaded``, which stays in memory meanwhile."""
    with loaded.placement.borrowed():
        return with_memory_errors(stage, remedy, work, loaded.go_leaner)


def out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory; torch's CPU allocator raises a plain RuntimeError."""
    return isinstance(error, (mm.OOM_EXCEPTION, MemoryError)) or "DefaultCPUAllocator" in str(error)
