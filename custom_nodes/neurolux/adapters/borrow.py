"""A pipeline for one stage: loaded if it is not in memory, with exactly what its handle carries in effect."""

from __future__ import annotations

from ..loading.handle import PipelineHandle
from ..loading.loaded import LoadedPipeline
from ..loading.store import pipelines
from ..weights.progress import LoadReporter
from .lora.applied import switch_loras


def borrow(handle: PipelineHandle, reporter: LoadReporter | None = None) -> LoadedPipeline:
    """The pipeline of ``handle``, loaded now if it is not (or no longer) in memory.

    Raises InvalidParameter or WeightsMissing for a LoRA that does not fit, and what loading raises.
    """
    loaded = pipelines.acquire(handle, reporter)
    switch_loras(loaded, handle.loras)
    loaded.controls = handle.controls
    loaded.compiled.enabled = handle.compile
    return loaded
