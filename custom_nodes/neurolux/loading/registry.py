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
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import comfy.model_management as mm
import psutil
import torch

from ..adapters.controlnets import AppliedControl, controlnets
from ..adapters.loras import Adapters, AppliedLora
from ..adapters.motion import AppliedMotion
from ..catalog.models import Model
from ..memory.machine import this_machine
from ..memory.placement import ComponentMemory, Placement
from ..memory.streaming import CPU
from ..planning.adapters import control_shape, with_adapters
from ..planning.planner import ComponentPlan, ComponentShape, Plan, Workload, gigabytes, leaner, make_plan
from ..preprocess.networks import preprocess_models
from ..weights.dtypes import Precision
from ..weights.progress import LoadReporter
from ..weights.sources import resolve
from ..weights.stamps import FileStamp, all_shapes
from .compiled import CompiledBlocks
from .working_memory import with_memory_errors

if TYPE_CHECKING:
    from ..families.placed import Pipeline
    from ..planning.planner import Machine

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
    shapes: Mapping[str, ComponentShape]
    placement: Placement
    workload: Workload
    """What the plan was made for."""
    first_offload: str
    """Where the weights are unless adapters or a larger image need the room."""
    unreported_load_ms: float
    """How long loading took, until someone has asked."""
    unreported_warnings: list[str] = field(default_factory=list)
    """What the user of an image should know, until it has been told."""
    planned_shapes: Mapping[str, ComponentShape] | None = None
    """With the adapters that the plan was made for, where there were any."""
    leaner: bool = False
    """Whether memory ran out, so that the plan is leaner than the one that was made at first."""
    handles: weakref.WeakSet[PipelineHandle] = field(default_factory=weakref.WeakSet)
    adapters: Adapters = field(default_factory=Adapters)
    """Its LoRAs; in effect are those of the handle that borrows it."""
    controls: tuple[AppliedControl, ...] = ()
    """The ControlNets of the handle that borrows it."""
    compiled: CompiledBlocks = field(default_factory=CompiledBlocks)
    """Its compiled blocks; in use where the handle that borrows it asks for them."""

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

    def take_warnings(self) -> list[str]:
        """What there is to say, once."""
        taken, self.unreported_warnings = self.unreported_warnings, []
        return taken

    @property
    def precision(self) -> Precision:
        """The types that it computes in."""
        return Precision.of(self.placement.plan, self.denoiser_name)

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM that dropping it would free."""
        return self.placement.ram_bytes

    def fit(self, width: int, height: int) -> None:
        """Plan anew for such an image what can change without loading again: resident blocks, tiles of the VAE.

        Not after memory ran out: what was learned then is better than an estimate.
        """
        workload, shapes = replace(self.workload, width=width, height=height), self.shapes_at_work()
        if self.leaner or (workload, shapes) == (self.workload, self.planned_shapes or self.shapes):
            return
        self.workload, self.planned_shapes = workload, shapes
        plan = self._planned(self.first_offload)
        if not plan.fits and self.spec.offload == "auto":
            other = self._planned("auto")
            plan = other if other.fits else plan
        if plan.offload == self.placement.mode:
            self.placement.resize(plan)
        elif all(same_types(plan.components[name], self.placement.planned(name)) for name in self.shapes):
            log_plan(self.model.name, plan)
            self.placement.follow(plan)

    def shapes_at_work(self) -> dict[str, ComponentShape]:
        """Its components with the LoRAs in them, and beside them the ControlNets of the handle that borrows it."""
        files = dict.fromkeys(control.file for control in self.controls)
        return with_adapters(
            self.shapes,
            self.denoiser_name,
            [shape_of_control(file, self.model.family) for file in files],
            sum(lora.bytes for lora in self.adapters.loaded.values()),
        )

    def _planned(self, offload: str) -> Plan:
        return make_plan(
            self.model.family, self.shapes_at_work(), self._machine(), self.workload, self.placement.plan.precision,
            offload, force_upcast_vae=self.precision.vae != self.precision.main,
        )  # fmt: skip

    def go_leaner(self) -> str | None:
        """Place by the next leaner plan from now on; what was done, for a reader, or None where there is no such plan.

        Everything has left the device.
        """
        before = self.placement.plan
        plan = leaner(before, self.model.family, self.shapes_at_work(), self._machine(), self.workload)
        if plan is None:
            return None
        self.placement.follow(plan)
        self.leaner = True
        registry.last_offload = plan.offload
        tiles = f", the VAE in tiles of {plan.vae_tile} pixels" if plan.vae_tile else ""
        said = f"offload {plan.offload} instead of {before.offload}{tiles}, peak {gigabytes(plan.peak_vram)}"
        self.unreported_warnings.append(f"memory ran out, and the stage was run again with a leaner plan: {said}")
        return said

    def _machine(self) -> Machine:
        return this_machine(self.device, droppable_ram=self.ram_bytes)


@dataclass(frozen=True, eq=False)
class PipelineHandle:
    """What a NEUROLUX_PIPELINE link carries: which pipeline, not its weights."""

    spec: LoadSpec
    model: Model
    adapters: tuple[AppliedLora, ...] = ()
    controls: tuple[AppliedControl, ...] = ()
    motion: AppliedMotion | None = None
    """What makes it draw videos."""
    compile: bool = False
    """Whether the denoiser's blocks run compiled. Not part of the spec: the weights are the same."""

    def __str__(self) -> str:
        """ComfyUI writes a failed node's inputs into its error report."""
        return f"pipeline {self.spec.model}"

    def loaded(self, reporter: LoadReporter | None = None) -> LoadedPipeline:
        """The pipeline, loaded now if it is not (or no longer) in memory."""
        return registry.acquire(self, reporter)


class Registry:
    """Loaded pipelines, least recently used first."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[LoadSpec, LoadedPipeline] = OrderedDict()
        self._lock = threading.RLock()
        self.last_offload: str | None = None
        self.last_dtype: torch.dtype | None = None

    def acquire(self, handle: PipelineHandle, reporter: LoadReporter | None = None) -> LoadedPipeline:
        """The pipeline that ``handle`` describes; loads it, making room in RAM first, if need be."""
        self.sweep()
        with self._lock:
            entry = self._loaded.get(handle.spec)
        if entry is None:
            self._drop_outdated(handle.spec)
            entry = self._load(handle, reporter)  # not under the lock: who asks what is loaded need not wait for it
        with self._lock:
            self._loaded[handle.spec] = entry
            self._loaded.move_to_end(handle.spec)
            if handle not in entry.handles:
                entry.handles.add(handle)
                weakref.finalize(handle, self.sweep).atexit = False
            self.last_offload, self.last_dtype = entry.placement.mode, entry.precision.main
        entry.adapters.switch(entry, handle.adapters)
        entry.controls = handle.controls
        entry.compiled.wanted = handle.compile
        return entry

    def sweep(self) -> None:
        """Drop pipelines that were asked to leave memory.

        ComfyUI's manager can take a pipeline off its device (``/free``, the Unload button). On a CPU that device is
        RAM, so the weights go. On a GPU they stay in RAM until no cached node refers to them either
        (``/free`` with ``free_memory``).
        """
        with self._lock:
            handles = [handle for entry in self._loaded.values() for handle in list(entry.handles)]
            controlnets.sweep({control.file for handle in handles for control in handle.controls})
            preprocess_models.sweep()
            for spec, entry in list(self._loaded.items()):
                # A handle that is just dying still counts in the set's length, but not when iterated over.
                unwanted = entry.device == CPU or not list(entry.handles)
                placement = entry.placement
                if placement.released and unwanted and not placement.managed and not placement.busy:
                    self._drop(spec)

    def loaded_models(self) -> list[str]:
        """Names of the models in memory, least recently used first."""
        with self._lock:
            self.sweep()
            return [spec.model for spec, entry in self._loaded.items() if not entry.placement.released]

    def droppable_ram(self) -> int:
        """Bytes of RAM that the loaded pipelines could give back."""
        with self._lock:
            return sum(entry.ram_bytes for entry in self._loaded.values())

    def memory(self) -> dict[str, list[ComponentMemory]]:
        """What is in memory by the model's name, component by component, measured."""
        with self._lock:
            entries = list(self._loaded.values())
        found: dict[str, list[ComponentMemory]] = {}
        for entry in entries:
            found.setdefault(entry.model.name, []).extend(entry.placement.memory())
        return found

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

    def _load(self, handle: PipelineHandle, reporter: LoadReporter | None) -> LoadedPipeline:
        from .build import build_pipeline, shapes_of, vae_must_upcast

        model, spec = handle.model, handle.spec
        reporter = reporter or LoadReporter()
        files = resolve(model, spec.variant, reporter)
        started = time.perf_counter()
        device: torch.device = mm.get_torch_device()
        shapes = shapes_of(model, spec.variant, files)
        machine = this_machine(device, droppable_ram=self.droppable_ram())
        workload = default_workload(model)
        plan = make_plan(
            model.family, shapes, machine, workload, spec.precision, spec.offload,
            force_upcast_vae=vae_must_upcast(files),
        )  # fmt: skip
        log_plan(model.name, plan)
        self._make_room(plan.peak_ram)
        pipe = with_memory_errors(
            f"loading {model.name}",
            "Close what else uses memory, or choose a smaller number format (precision bf16).",
            lambda: build_pipeline(
                model, spec.variant, files, for_loading(plan), partial(reporter.reading, model.name), device
            ),
        )
        pipe.placement_device = device
        components = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        placement = Placement(components, device, plan)
        load_ms = (time.perf_counter() - started) * 1000
        _log.info("NeuroLux: loaded %s in %.1f s", model.name, load_ms / 1000)
        return LoadedPipeline(spec, model, pipe, shapes, placement, workload, plan.offload, load_ms)

    def _make_room(self, needed: int) -> None:
        """Drop least recently used pipelines until ``needed`` bytes fit into free RAM, or none is left."""
        while self._loaded and needed > psutil.virtual_memory().available:
            self._drop(next(iter(self._loaded)))


@lru_cache(maxsize=64)
def shape_of_control(file: FileStamp, family: str) -> ComponentShape:
    """A ControlNet by its file or its diffusers folder. Raises WeightsMissing for a damaged one."""
    return control_shape(all_shapes(file), family)


def default_workload(model: Model) -> Workload:
    """What a model is planned for when it is loaded: one image as it makes them unless told otherwise."""
    defaults = model.defaults
    return Workload(defaults.width, defaults.height, 1, defaults.num_inference_steps)


def same_types(planned: ComponentPlan, now: ComponentPlan) -> bool:
    """Whether weights that are loaded by ``now`` are as ``planned`` wants them."""
    return (planned.storage, planned.compute) == (now.storage, now.compute)


def for_loading(plan: Plan) -> Plan:
    """``plan`` for the loader: weights that RAM keeps no copy of stay in their files, mapped."""
    if plan.copies_in_ram:
        return plan
    parts = {name: replace(part, placement="disk") for name, part in plan.components.items()}
    return replace(plan, components=parts)


def log_plan(name: str, plan: Plan) -> None:
    """Say what was planned; a plan that does not fit is tried all the same, because its figures are estimates."""
    reasons = "; ".join(plan.reasons)
    level = logging.INFO if plan.fits else logging.WARNING
    fits = "" if plan.fits else " It may not fit."
    memory = f"{gigabytes(plan.peak_vram)} on the device, {gigabytes(plan.peak_ram)} of RAM"
    _log.log(
        level, "NeuroLux: %s: offload %s, %s, %s: %s.%s", name, plan.offload, plan.precision, memory, reasons, fits
    )


def load_handle(
    model: Model,
    stamp: tuple[int, ...],
    steps: int = 0,
    precision: str = "auto",
    offload: str = "auto",
    reporter: LoadReporter | None = None,
    compile: bool = False,
) -> PipelineHandle:
    """Load ``model`` (or find it loaded) and return the handle that a graph passes on."""
    spec = LoadSpec(model.name, stamp, model.variant(steps), precision, offload)
    handle = PipelineHandle(spec, model, compile=compile)
    handle.loaded(reporter)
    return handle


registry = Registry()
"""This process's pipelines. ComfyUI runs one prompt at a time, so one registry serves all."""
