"""The loaded pipelines of this process. Each is loaded once, kept while RAM allows, and shared by all graphs.

A graph only carries a PipelineHandle, which describes a pipeline. The weights are here, so switching between graphs
does not reload them, whatever node cache ComfyUI uses. A pipeline that was dropped to free RAM is loaded again when one
of its handles is next used.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import comfy.model_management as mm
import torch

from ..catalog.models import Model
from ..families.registry import family_of
from ..memory.backends.choice import backend
from ..memory.cycles import let_go
from ..memory.machine import this_machine
from ..memory.manager import core_pinned_copies, free_core_pinned_copies
from ..memory.module_store import modules
from ..memory.out_of_memory import with_memory_errors
from ..memory.placement import ComponentMemory, Placement
from ..memory.streaming import CPU
from ..planning.planner import make_plan
from ..planning.records import Machine, Plan, Workload
from ..weights.progress import LoadReporter
from .handle import LoadSpec, PipelineHandle
from .loaded import LoadedPipeline
from .replanning import log_plan
from .source import FileSource, PipelineSource

if TYPE_CHECKING:
    from ..families.parts.placed import Pipeline

_log = logging.getLogger(__name__)


class PipelineStore:
    """Loaded pipelines, least recently used first."""

    def __init__(self, source: PipelineSource | None = None) -> None:
        self._source = source or FileSource()
        self._loaded: OrderedDict[LoadSpec, LoadedPipeline] = OrderedDict()
        self._lock = threading.RLock()

    def acquire(self, handle: PipelineHandle, reporter: LoadReporter | None = None) -> LoadedPipeline:
        """The pipeline that ``handle`` describes, without its adapters. Loads it if necessary.

        A handle for any checkpoint gets the one that was used last.

        If RAM is short, loading first drops other pipelines. Stages call ``adapters.borrow.borrow`` instead.
        """
        self.sweep()
        with self._lock:
            entry = self._of_any_checkpoint(handle.spec) if handle.any_checkpoint else self._loaded.get(handle.spec)
        if entry is None:
            self._drop_outdated(handle.spec)
            entry = self._load(handle, reporter)  # not under the lock, so loaded_models() need not wait
        with self._lock:
            self._loaded[entry.spec] = entry
            self._loaded.move_to_end(entry.spec)
            if handle not in entry.handles:
                entry.handles.add(handle)
                weakref.finalize(handle, self.sweep).atexit = False
        return entry

    def sweep(self) -> None:
        """Drop pipelines, and modules beside them, that ComfyUI has released.

        ComfyUI's manager can take a pipeline off its device (``/free``, the Unload button). On a CPU the device is RAM,
        so the weights are dropped. On a GPU they stay in RAM until no cached node refers to them (``/free`` with
        ``free_memory``).
        """
        with self._lock:
            handles = [handle for entry in self._loaded.values() for handle in list(entry.handles)]
            modules.sweep({file for handle in handles for file in handle.files})
            for spec, entry in list(self._loaded.items()):
                # A handle that is being finalized still counts in the set's length, but not in its iteration.
                unused = entry.device == CPU or backend().masters_move or not list(entry.handles)
                placement = entry.placement
                if placement.released and unused and not placement.managed and not placement.busy:
                    self.drop(spec)

    def drop(self, spec: LoadSpec) -> None:
        """Remove one pipeline from memory, if it is loaded."""
        with self._lock:
            entry = self._loaded.pop(spec, None)  # None if a finalized handle ran a sweep during this one
        if entry is not None:
            _log.info("NeuroLux: freeing %s", spec.model)
            with let_go(entry.placement.modules):
                entry.placement.close()
                del entry
            mm.soft_empty_cache()

    def unload(self, model: str) -> bool:
        """Remove the pipelines of one model that nobody works with. False if there is none."""
        with self._lock:
            free = [spec for spec, entry in self._loaded.items() if spec.model == model and not entry.placement.busy]
        for spec in free:
            self.drop(spec)
        return bool(free)

    def clear(self) -> None:
        """Remove every pipeline from memory."""
        for spec in list(self._loaded):
            self.drop(spec)

    def give_back(self, target: int) -> int:
        """Drop what no live handle refers to, least recently used first, until ``target`` bytes of RAM are available.

        What works now stays. Returns the bytes that were given back.
        """
        with self._lock:
            handles = [handle for entry in self._loaded.values() for handle in list(entry.handles)]
            idle = [
                spec for spec, entry in self._loaded.items() if not list(entry.handles) and not entry.placement.busy
            ]
        given = 0
        for spec in idle:
            entry = self._loaded.get(spec)
            if entry is None or not entry.ram_bytes or backend().host().available >= target:
                continue
            given += entry.ram_bytes
            del entry
            self.drop(spec)
        return given + modules.give_back(target, {file for handle in handles for file in handle.files})

    def loaded_models(self) -> list[str]:
        """Names of the models in memory, least recently used first."""
        with self._lock:
            self.sweep()
            return [spec.model for spec, entry in self._loaded.items() if not entry.placement.released]

    @property
    def last(self) -> LoadedPipeline | None:
        """The most recently used pipeline in memory."""
        with self._lock:
            return next(reversed(self._loaded.values()), None)

    def droppable_ram(self) -> int:
        """Bytes of RAM that dropping all loaded pipelines would free."""
        with self._lock:
            return sum(entry.ram_bytes for entry in self._loaded.values())

    def memory(self) -> dict[str, list[ComponentMemory]]:
        """The measured memory of each component, by model name."""
        with self._lock:
            entries = list(self._loaded.values())
        found: dict[str, list[ComponentMemory]] = {}
        for entry in entries:
            found.setdefault(entry.model.name, []).extend(entry.placement.memory())
        return found

    def _of_any_checkpoint(self, spec: LoadSpec) -> LoadedPipeline | None:
        """The most recently used pipeline that differs from ``spec`` in the checkpoint at most."""
        found = (entry for key, entry in reversed(self._loaded.items()) if replace(key, variant=spec.variant) == spec)
        return next(found, None)

    def _drop_outdated(self, spec: LoadSpec) -> None:
        """Drop pipelines of the same model whose files have been replaced since."""
        for other in list(self._loaded):
            if other.model == spec.model and other.stamp != spec.stamp:
                self.drop(other)

    def _load(self, handle: PipelineHandle, reporter: LoadReporter | None) -> LoadedPipeline:
        model, spec = handle.model, handle.spec
        family = family_of(model.family)
        reporter = reporter or LoadReporter()
        opened = self._source.open(model, spec.variant, reporter)
        started = time.perf_counter()
        device: torch.device = mm.get_torch_device()
        shapes = opened.shapes
        machine = this_machine(device, droppable_ram=self.droppable_ram())
        workload = default_workload(model)

        def planned(machine: Machine) -> Plan:
            return make_plan(
                family.costs, shapes, machine, workload, spec.precision, spec.offload,
                force_upcast_vae=opened.force_upcast_vae,
            )  # fmt: skip

        plan = planned(machine)
        disk_rate = opened.disk_rate() if plan.reads_files else None
        if disk_rate is not None:
            plan = planned(replace(machine, disk_rate=disk_rate, disk_from="measured"))
        log_plan(model.name, plan)
        self._free_ram(plan.peak_ram)
        where = [device, CPU]

        def build() -> Pipeline:
            return opened.build(for_loading(plan), partial(reporter.reading, model.name), where[0])

        def with_less() -> str | None:
            """What a second attempt does without. The device is empty by then."""
            if plan.loading_vram:
                where.pop(0)
                return "the weights converted on the CPU"
            if self._loaded:
                self.clear()
                return "the other models dropped from RAM"
            return None

        if plan.loading_vram:
            mm.free_memory(plan.loading_vram + mm.extra_reserved_memory(), device)
        pipe = with_memory_errors(
            f"loading {model.name}",
            "Close other programs that use memory, or choose a smaller number format (precision bf16).",
            build, with_less,
        )  # fmt: skip
        pipe.placement_device = device
        components = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        placement = Placement(components, device, plan, family)
        placement.prepare()
        load_ms = (time.perf_counter() - started) * 1000
        _log.info("NeuroLux: loaded %s in %.1f s", model.name, load_ms / 1000)
        return LoadedPipeline(
            spec, model, pipe, shapes, placement, workload, plan.offload, load_ms, disk_rate=disk_rate
        )

    def _free_ram(self, needed: int) -> None:
        """Make ``needed`` bytes of RAM free: core's copies go first, then the least recently used pipelines."""
        if core_pinned_copies():
            free_core_pinned_copies(needed - backend().host().available)
        while self._loaded and needed > backend().host().available:
            self.drop(next(iter(self._loaded)))


def default_workload(model: Model) -> Workload:
    """The workload for the first plan of a model: one image with its default values."""
    defaults = model.defaults
    return Workload(defaults.width, defaults.height, 1, defaults.num_inference_steps, model.passes)


def for_loading(plan: Plan) -> Plan:
    """``plan`` for the loader. If RAM keeps no copy of the weights, they stay mapped from their files."""
    if plan.copies_in_ram:
        return plan
    parts = {name: replace(part, placement="disk") for name, part in plan.components.items()}
    return replace(plan, components=parts)


def load_handle(
    model: Model,
    stamp: tuple[int, ...],
    steps: int = 0,
    precision: str = "auto",
    offload: str = "auto",
    reporter: LoadReporter | None = None,
    compile: bool = False,
) -> PipelineHandle:
    """Load ``model``, unless it is loaded already, and return a handle for the graph.

    :param steps: The checkpoint to load of a step-distilled model if none is in memory; the sampling nodes choose.
    """
    spec = LoadSpec(model.name, stamp, model.variant(steps), precision, offload)
    handle = PipelineHandle(spec, model, compile=compile, any_checkpoint=model.shares_components)
    pipelines.acquire(handle, reporter)
    return handle


pipelines = PipelineStore()
"""This process's pipelines. ComfyUI runs one prompt at a time, so one store serves all."""
