"""A pipeline with its weights in memory: the record that the store keeps and that stages borrow."""

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
    from ..families.placed import Pipeline


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA whose layers are in a pipeline's components, in use or not."""

    parts: tuple[str, ...]
    bytes: int


@dataclass
class LoadedLoras:
    """The LoRAs of one loaded pipeline (adapters/loras.py puts them in and switches them)."""

    loaded: OrderedDict[FileStamp, LoadedLora] = field(default_factory=OrderedDict)
    """Least recently used first."""
    active: tuple[AppliedLora, ...] = ()

    @property
    def bytes(self) -> int:
        """Of all their layers."""
        return sum(lora.bytes for lora in self.loaded.values())

    @property
    def text_key(self) -> tuple[tuple[str, float], ...]:
        """What the text encoders' output depends on beside the text: equal keys encode alike."""
        return tuple(
            (lora.file.key, lora.text_strength)
            for lora in self.active
            if lora.text_strength and any(part.startswith("text_encoder") for part in self.loaded[lora.file].parts)
        )


@dataclass
class CompiledBlocks:
    """The compiled calls of a pipeline's denoiser (compiled.py makes and runs them)."""

    wanted: bool = False
    """Whether the handle that borrows the pipeline asks for them."""
    calls: list[tuple[torch.nn.Module, Any]] = field(default_factory=list)
    """Each repeated block with its compiled call; empty until they are first wanted."""
    failure: str | None = None
    """Why they cannot be had, once that has been found out."""


@dataclass
class LoadedPipeline:
    """A pipeline with its weights in memory. The store owns it; stages borrow it."""

    spec: LoadSpec
    model: Model
    pipe: Pipeline
    shapes: Mapping[str, ComponentShape]
    placement: Placement
    workload: Workload
    """What the plan was made for."""
    first_offload: str
    """Where the weights are unless adapters or a larger image need the memory."""
    unreported_load_ms: float
    """How long loading took, until someone has asked."""
    unreported_warnings: list[str] = field(default_factory=list)
    """What the user of an image should know, until it has been reported."""
    planned_shapes: Mapping[str, ComponentShape] | None = None
    """With the adapters that the plan was made for, where there were any."""
    leaner: bool = False
    """Whether memory ran out, so that the plan is leaner than the one that was made at first."""
    handles: weakref.WeakSet[PipelineHandle] = field(default_factory=weakref.WeakSet)
    loras: LoadedLoras = field(default_factory=LoadedLoras)
    """In effect are those of the handle that borrows it."""
    controls: tuple[AppliedControl, ...] = ()
    """The ControlNets of the handle that borrows it."""
    compiled: CompiledBlocks = field(default_factory=CompiledBlocks)

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
        return family_of(self.model.family).denoiser

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
