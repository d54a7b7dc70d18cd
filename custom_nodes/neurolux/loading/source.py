"""Where the store gets a pipeline from: files. A dry run makes it from architectures instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from ..catalog.models import Model
from ..planning.records import ComponentShape, Plan
from ..weights.disk_speed import rate_of_files
from ..weights.download.sources import ResolvedFiles, resolve
from ..weights.files import LoadProgress
from ..weights.progress import LoadReporter

if TYPE_CHECKING:
    from ..families.parts.placed import Pipeline


class OpenedModel(Protocol):
    """A model whose sizes are known and whose weights have not been read."""

    @property
    def shapes(self) -> Mapping[str, ComponentShape]:
        """The sizes of its components."""
        ...

    @property
    def force_upcast_vae(self) -> bool:
        """Whether its VAE must compute in fp32 where the others compute in fp16."""
        ...

    def disk_rate(self) -> float | None:
        """Bytes a second from the disk with its files, measured; None if there is nothing to measure."""
        ...

    def build(self, plan: Plan, progress: LoadProgress | None, device: torch.device) -> Pipeline:
        """The pipeline in RAM, with its weights in the types of ``plan``; ``device`` is where they are quantized."""
        ...


class PipelineSource(Protocol):
    """Opens models."""

    def open(self, model: Model, variant: int | None, reporter: LoadReporter) -> OpenedModel:
        """Find ``model``. Raises WeightsMissing."""
        ...


@dataclass(frozen=True)
class OpenedFiles:
    """A model in files on this machine."""

    model: Model
    variant: int | None
    files: ResolvedFiles

    @property
    def shapes(self) -> Mapping[str, ComponentShape]:
        from .build import shapes_of

        return shapes_of(self.model, self.variant, self.files)

    @property
    def force_upcast_vae(self) -> bool:
        from .build import vae_must_upcast

        return vae_must_upcast(self.files)

    def disk_rate(self) -> float | None:
        return rate_of_files(self.files)

    def build(self, plan: Plan, progress: LoadProgress | None, device: torch.device) -> Pipeline:
        from .build import build_pipeline

        return build_pipeline(self.model, self.variant, self.files, plan, progress, device)


class FileSource:
    """Models in files, downloaded where they are missing."""

    def open(self, model: Model, variant: int | None, reporter: LoadReporter) -> OpenedModel:
        return OpenedFiles(model, variant, resolve(model, variant, reporter))
