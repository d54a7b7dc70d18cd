"""The record of a loaded pipeline, which the store keeps and stages borrow."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..catalog.models import Model
from ..families.registry import family_of
from ..memory.placement import Placement
from ..planning.records import ComponentShape, Workload
from ..weights.dtypes import Precision
from ..weights.stamps import FileStamp
from .handle import AppliedControl, AppliedLora, LoadSpec, PipelineHandle

if TYPE_CHECKING:
    from ..families.parts.placed import Pipeline


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA whose layers are loaded into a pipeline's components, active or not."""

    parts: tuple[str, ...]
    bytes: int
    note: str | None = None
    """Which of the file's layers are not in use, as text for the user; None if all are."""


@dataclass
class LoadedLoras:
    """The LoRAs of one loaded pipeline. adapters/lora/applied.py loads and activates them."""

    loaded: OrderedDict[FileStamp, LoadedLora] = field(default_factory=OrderedDict)
    """Least recently used first."""
    active: tuple[AppliedLora, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of all their layers."""
        return sum(lora.bytes for lora in self.loaded.values())

    @property
    def text_key(self) -> tuple[tuple[str, float], ...]:
        """Identifies the LoRAs that affect the text encoders. Equal keys give equal embeddings for the same text."""
        return tuple(
            (lora.file.key, lora.text_strength)
            for lora in self.active
            if lora.text_strength and any(part.startswith("text_encoder") for part in self.loaded[lora.file].parts)
        )


@dataclass
class CompiledBlocks:
    """The compiled calls of a pipeline's denoiser. compiled.py creates and runs them."""

    enabled: bool = False
    """Whether the handle that borrows the pipeline enables them."""
    calls: list[tuple[torch.nn.Module, Any]] = field(default_factory=list)
    """Each repeated block with its compiled call; empty until they are first used."""
    failure: str | None = None
    """Why compiling failed; None if it has not."""


@dataclass
class LoadedPipeline:
    """A pipeline with its weights in memory. The store owns it; stages borrow it."""

    spec: LoadSpec
    model: Model
    pipe: Pipeline
    shapes: Mapping[str, ComponentShape]
    placement: Placement
    workload: Workload
    """The workload that the plan was made for."""
    first_offload: str
    """The offload mode of the first plan. It applies unless adapters or a larger image need the memory."""
    unreported_load_ms: float
    """How long loading took; 0 once it has been reported."""
    unreported_warnings: list[str] = field(default_factory=list)
    """Warnings for the user that have not been reported yet."""
    disk_rate: float | None = None
    """Bytes a second from the disk with its files, if that was measured."""
    planned_shapes: Mapping[str, ComponentShape] | None = None
    """The shapes that the plan was made for, with adapters; None for ``shapes``."""
    leaner: bool = False
    """Whether memory ran out and the plan was replaced by a leaner one."""
    handles: weakref.WeakSet[PipelineHandle] = field(default_factory=weakref.WeakSet)
    loras: LoadedLoras = field(default_factory=LoadedLoras)
    """The loaded LoRAs. Those of the borrowing handle are active."""
    controls: tuple[AppliedControl, ...] = ()
    """The ControlNets of the handle that borrows it."""
    motion: ComponentShape | None = None
    """The motion adapter that works beside it now."""
    compiled: CompiledBlocks = field(default_factory=CompiledBlocks)

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return self.placement.device

    @property
    def denoiser(self) -> torch.nn.Module:
        """The component that denoises: the transformer or the UNet."""
        return getattr(self.pipe, self.denoiser_name)

    @property
    def denoiser_name(self) -> str:
        """The name of the component that denoises."""
        return family_of(self.model.family).denoiser

    def take_load_ms(self) -> float:
        """The time that loading took, in ms. Later calls return 0."""
        load_ms, self.unreported_load_ms = self.unreported_load_ms, 0.0
        return load_ms

    def take_warnings(self) -> list[str]:
        """The unreported warnings. Later calls do not return them again."""
        warnings, self.unreported_warnings = self.unreported_warnings, []
        return warnings

    @property
    def precision(self) -> Precision:
        """The types that it computes in."""
        return Precision.of(self.placement.plan, self.denoiser_name)

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM that dropping it would free."""
        return self.placement.ram_bytes
