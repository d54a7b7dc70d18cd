"""The records that a pipeline link carries: which pipeline, and what is applied to it. They hold no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..catalog.models import Model
from ..weights.stamps import FileStamp


@dataclass(frozen=True)
class LoadSpec:
    """The identity of a load: the model's files, the checkpoint, and the user's choices. Equal specs share weights."""

    model: str
    stamp: tuple[int, ...]
    variant: int | None
    precision: str
    offload: str


@dataclass(frozen=True)
class AppliedLora:
    """One LoRA on a handle."""

    file: FileStamp
    strength: float
    """Strength of its layers in the denoiser."""
    text_strength: float
    """Strength of its layers in the text encoders, if it has any."""


@dataclass(frozen=True)
class AppliedControl:
    """One ControlNet on a handle, with its control image."""

    file: FileStamp
    mode: str
    strength: float
    start: float
    """Share of the steps after which it starts to act."""
    end: float
    """Share of the steps after which it stops acting."""
    digest: str
    """Digest of the image."""
    image: torch.Tensor = field(compare=False, repr=False)
    """(B, H, W, 3) in [0, 1]."""


@dataclass(frozen=True)
class AppliedMotion:
    """The motion adapter on a handle, with its sampling settings."""

    file: FileStamp
    scheduler: str
    """Class name in diffusers."""
    schedule: Mapping[str, Any] = field(hash=False)
    """Scheduler settings that override the model's own."""
    steps: int
    """The default number of steps."""
    guidance: float
    only_steps: int | None = None
    """The number of steps that a distilled adapter requires; None for any number."""


@dataclass(frozen=True, eq=False)
class PipelineHandle:
    """The value of a NEUROLUX_PIPELINE link. A stage borrows the pipeline that it describes (adapters/borrow.py)."""

    spec: LoadSpec
    model: Model
    loras: tuple[AppliedLora, ...] = ()
    controls: tuple[AppliedControl, ...] = ()
    motion: AppliedMotion | None = None
    """The motion adapter, which makes the pipeline generate videos."""
    compile: bool = False
    """Whether the denoiser's blocks run compiled. Not part of the spec: the weights are the same."""
    any_checkpoint: bool = False
    """Whether every checkpoint of a step-distilled model will do, because they differ in the denoiser alone, which only
    sampling uses. The spec then names the one to load if none is in memory."""

    def __str__(self) -> str:
        """A short text, because ComfyUI writes a failed node's inputs into its error report."""
        return f"pipeline {self.spec.model}"

    def for_steps(self, steps: int) -> PipelineHandle:
        """The same with the checkpoint for ``steps`` (0: the model's default). Raises InvalidParameter if none is."""
        spec = replace(self.spec, variant=self.model.variant(steps))
        if spec == self.spec and not self.any_checkpoint:
            return self
        return replace(self, spec=spec, any_checkpoint=False)

    @property
    def files(self) -> set[FileStamp]:
        """The files of the modules that work beside the pipeline's own: ControlNets and the motion adapter."""
        return {control.file for control in self.controls} | ({self.motion.file} if self.motion else set())
