"""The loaded pipelines of this process: each loaded once, kept while RAM allows, shared by every graph.

A graph carries a PipelineHandle, which is a description; the weights live here. So switching between graphs does not
load again, whatever node cache ComfyUI runs with, and a pipeline that had to give way to another is loaded again when a
handle is next used.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import comfy.model_management as mm
import psutil
import torch

from ..catalog import Model
from .memory import with_memory_errors
from .offload import plan_offload
from .placement import Placement
from .precision import DeviceTraits, Precision, choose_precision, count_parameters
from .sources import DownloadProgress, resolve

if TYPE_CHECKING:
    from .load import Pipeline

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadSpec:
    """What makes two loads the same: the model's files, the checkpoint, and the user's choices."""

    model: str
    stamp: tuple[int, ...]
    variant: int | None
    precision: str
    offload: str


@dataclass
class LoadedPipeline:
    """A pipeline with its weights in memory. The registry owns it; stages borrow it."""

    spec: LoadSpec
    model: Model
    pipe: Pipeline
    precision: Precision
    placement: Placement
    unreported_load_ms: float
    """How long loading took, until someone has asked."""
    handles: weakref.WeakSet[PipelineHandle] = field(default_factory=weakref.WeakSet)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.placement.device

    @property
    def denoiser(self) -> torch.nn.Module:
        """The transformer or the UNet."""
        return getattr(self.pipe, self.denoiser_name)

    @property
    def denoiser_name(self) -> str:
        """The component that denoises."""
        return "transformer" if self.model.family == "flux" else "unet"

    def take_load_ms(self) -> float:
        """The time that loading took, once; 0 afterwards, when nothing was loaded."""
        taken, self.unreported_load_ms = self.unreported_load_ms, 0.0
        return taken

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights in RAM (or on the device)."""
        parts = [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]
        return sum(weight.nbytes for part in parts for weight in part.parameters())


@dataclass(frozen=True, eq=False)
class PipelineHandle:
    """What a NEUROLUX_PIPELINE link carries: which pipeline, not its weights."""

    spec: LoadSpec
    model: Model

    def __str__(self) -> str:
        """ComfyUI writes a failed node's inputs into its error report."""
        return f"pipeline {self.spec.model}"

    def loaded(self, progress: DownloadProgress | None = None) -> LoadedPipeline:
        """The pipeline, loaded now if it is not (or no longer) in memory."""
        return registry.acquire(self, progress)


class Registry:
    """Loaded pipelines, least recently used first."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[LoadSpec, LoadedPipeline] = OrderedDict()
        self._lock = threading.RLock()
        self.last_offload: str | None = None
        self.last_dtype: torch.dtype | None = None

    def acquire(self, handle: PipelineHandle, progress: DownloadProgress | None = None) -> LoadedPipeline:
        """The pipeline that ``handle`` describes; loads it, making room in RAM first, if need be."""
        self.sweep()
        with self._lock:
            entry = self._loaded.get(handle.spec)
        if entry is None:
            self._drop_outdated(handle.spec)
            entry = self._load(handle, progress)  # not under the lock: who asks what is loaded need not wait for it
        with self._lock:
            self._loaded[handle.spec] = entry
            self._loaded.move_to_end(handle.spec)
            if handle not in entry.handles:
                entry.handles.add(handle)
                weakref.finalize(handle, self.sweep).atexit = False
            self.last_offload, self.last_dtype = entry.placement.mode, entry.precision.main
            return entry

    def sweep(self) -> None:
        """Drop pipelines that were asked to leave memory.

        ComfyUI's manager can take a pipeline off its device (``/free``, the Unload button). On a CPU that device is
        RAM, so the weights go. On a GPU they stay in RAM until no cached node refers to them either
        (``/free`` with ``free_memory``).
        """
        with self._lock:
            for spec, entry in list(self._loaded.items()):
                # A handle that is just dying still counts in the set's length, but not when iterated over.
                unwanted = entry.device.type == "cpu" or not list(entry.handles)
                if entry.placement.released and unwanted and not entry.placement.managed:
                    self._drop(spec)

    def loaded_models(self) -> list[str]:
        """Names of the models in memory, least recently used first."""
        with self._lock:
            self.sweep()
            return [spec.model for spec, entry in self._loaded.items() if not entry.placement.released]

    def _drop_outdated(self, spec: LoadSpec) -> None:
        """Free what was loaded from files that have been replaced since."""
        for other in list(self._loaded):
            if other.model == spec.model and other.stamp != spec.stamp:
                self._drop(other)

    def _drop(self, spec: LoadSpec) -> None:
        with self._lock:
            entry = self._loaded.pop(spec, None)  # None: a dying handle swept while this sweep was running
        if entry is not None:
            _log.info("NeuroLux: freeing %s", spec.model)
            entry.placement.close()
            del entry
            mm.soft_empty_cache()

    def _load(self, handle: PipelineHandle, progress: DownloadProgress | None) -> LoadedPipeline:
        from .load import build_pipeline, vae_must_upcast, weight_files

        model, spec = handle.model, handle.spec
        files = resolve(model, spec.variant, progress)
        started = time.perf_counter()
        device: torch.device = mm.get_torch_device()
        parameters = count_parameters(weight_files(files))
        precision = choose_precision(
            spec.precision,
            device_traits(device, droppable=sum(entry.weight_bytes for entry in self._loaded.values())),
            model.family,
            parameters,
            force_upcast_vae=vae_must_upcast(files),
        )
        self._make_room(parameters * precision.main.itemsize)
        pipe = with_memory_errors(
            f"loading {model.name}",
            "Close what else uses memory, or choose a smaller number format (precision bf16).",
            lambda: build_pipeline(model, spec.variant, files, precision),
        )
        pipe.placement_device = device
        placement = place(pipe, device, spec.offload)
        load_ms = (time.perf_counter() - started) * 1000
        _log.info("NeuroLux: loaded %s in %.1f s: %s on %s", model.name, load_ms / 1000, precision.main, device)
        return LoadedPipeline(spec, model, pipe, precision, placement, load_ms)

    def _make_room(self, needed: int) -> None:
        """Drop least recently used pipelines until ``needed`` bytes fit into free RAM, or none is left."""
        while self._loaded and needed > psutil.virtual_memory().available:
            self._drop(next(iter(self._loaded)))


def place(pipe: Pipeline, device: torch.device, wanted: str) -> Placement:
    """Plan where the components go and hand them to ComfyUI's memory manager."""
    components = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    sizes = {name: sum(weight.nbytes for weight in part.parameters()) for name, part in components.items()}
    plan = plan_offload(sizes, reclaimable_memory(device), device.type, wanted)
    _log.info("NeuroLux: offload %s, peak %.1f GB: %s", plan.mode, plan.peak_bytes / 1e9, plan.reason)
    return Placement(components, device, plan.mode)


def reclaimable_memory(device: torch.device) -> int:
    """Free memory of ``device``, and what the manager could free by evicting the models that it holds there."""
    held = sum(loaded.model.loaded_size() for loaded in mm.current_loaded_models if loaded.device == device)
    return int(mm.get_free_memory(device)) + held


def device_traits(device: torch.device, droppable: int) -> DeviceTraits:
    """What ComfyUI knows of the device, its command line (``--force-fp32`` and the like) included.

    ``droppable`` bytes of other pipelines can make way, so they count as free RAM.
    """
    return DeviceTraits(
        type=device.type,
        bf16=bool(mm.should_use_bf16(device)),
        fp16=bool(mm.should_use_fp16(device)),
        free_ram=psutil.virtual_memory().available + droppable,
    )


def load_handle(
    model: Model,
    stamp: tuple[int, ...],
    steps: int = 0,
    precision: str = "auto",
    offload: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> PipelineHandle:
    """Load ``model`` (or find it loaded) and return the handle that a graph passes on."""
    handle = PipelineHandle(LoadSpec(model.name, stamp, model.variant(steps), precision, offload), model)
    handle.loaded(progress)
    return handle


registry = Registry()
"""This process's pipelines. ComfyUI runs one prompt at a time, so one registry serves all."""
