"""Opens models by their architecture: as if their published files were on this machine, mapped and never read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch._subclasses.fake_tensor import FakeTensor

from ..catalog.models import Model
from ..errors import InvalidParameter
from ..families.parts.clip import tokenizer as clip_tokenizer
from ..families.registry import family_of
from ..families.spec import Architecture, Component, Make, Part
from ..loading.build import assembled
from ..loading.components import ComponentFiles
from ..loading.fill import load_component
from ..loading.source import OpenedModel
from ..planning.records import ComponentShape, Plan
from ..weights.dtypes import DTYPES
from ..weights.files import LoadMeter, LoadProgress
from ..weights.progress import LoadReporter
from .architectures import known_architectures
from .device import SimulatedBackend
from .schedules import steady_scheduler
from .tensors import no_modes

if TYPE_CHECKING:
    from ..families.parts.placed import Pipeline


@dataclass(frozen=True)
class ArchitectureFiles(ComponentFiles):
    """The files of a component that nobody has downloaded."""

    backend: SimulatedBackend | None = None
    module: Any = None
    stored: torch.dtype = torch.bfloat16

    @property
    def part(self) -> Part:
        return replace(self.component.part, empty=lambda config, folder: self.module)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Mapped from files that are not there."""
        assert self.backend is not None
        tied = self.component.part.tied
        return {
            name: self.backend.mapped_tensor(value.shape, self.stored)
            for name, value in self.module.state_dict(keep_vars=True).items()
            if name not in tied
        }

    @property
    def bytes(self) -> int:
        return 0


def with_fake_buffers(module: Any) -> Any:
    """``module``, its buffers that no file holds (position numbers) as fake as its weights."""
    for part in module.modules():
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and not isinstance(buffer, FakeTensor):
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return module


@dataclass(frozen=True)
class OpenedArchitecture:
    """A catalog model."""

    model: Model
    architecture: Architecture
    variant: int | None
    backend: SimulatedBackend

    @property
    def shapes(self) -> Mapping[str, ComponentShape]:
        return self.model.components

    @property
    def force_upcast_vae(self) -> bool:
        return self.model.force_upcast_vae

    def disk_rate(self) -> None:
        """There is no disk."""

    def build(self, plan: Plan, progress: LoadProgress | None, device: torch.device) -> Pipeline:
        """The real loading, of tensors that have no numbers."""
        family = family_of(self.model.family)
        meter = LoadMeter(1, None)
        parts: dict[str, Any] = {}
        with torch.inference_mode(False), torch.no_grad():
            for name, make in self.architecture.items():
                files = self._files(name, family.components[name], make)
                parts[name] = with_fake_buffers(load_component(files, plan.components[name], meter, device))
            config: dict[str, Any] = {"force_upcast": self.model.force_upcast_vae, **family.components["vae"].config}
            parts["vae"].register_to_config(**config)
            with no_modes():
                parts["scheduler"] = self._scheduler(parts)
                tokens = self.model.max_sequence_length
                tokenizers = family.tokenizers(tokens) if family.tokenizers else {"tokenizer": clip_tokenizer()}
                return assembled(self.model, {}, {**parts, **tokenizers})

    def _files(self, name: str, component: Component, make: Make) -> ArchitectureFiles:
        stored = self.model.components[name].stored or "bf16"
        path = Path(f"{self.model.name}/{name}.safetensors")
        with no_modes(), torch.device("meta"):
            module = make()
        return ArchitectureFiles(
            name, component, (path,), backend=self.backend, module=module, stored=DTYPES.get(stored, torch.bfloat16)
        )

    def _scheduler(self, parts: Mapping[str, Any]) -> Any:
        family, model = family_of(self.model.family), self.model
        if family.scheduler is not None:
            scheduler = family.scheduler({name: dict(part.config.to_dict() if hasattr(part.config, "to_dict") else
                                                      part.config) for name, part in parts.items()})  # fmt: skip
            made = getattr(diffusers, scheduler.class_name)(**scheduler.config)
        else:
            made = diffusers.EulerDiscreteScheduler()
        if "Euler" not in type(made).__name__:  # others look steps up by their numbers, which nothing has here
            made = diffusers.EulerDiscreteScheduler()
        if model.scheduler is not None:
            changes = {**model.scheduler.config}
            if self.variant is not None and self.variant in model.checkpoints:
                changes.update(model.checkpoints[self.variant].scheduler)
            made = getattr(diffusers, model.scheduler.class_name).from_config(dict(made.config), **changes)
        return steady_scheduler(made)


@dataclass(frozen=True)
class ArchitectureSource:
    """Opens the models of ``architectures``: the catalog's."""

    backend: SimulatedBackend
    architectures: Mapping[str, Architecture] = field(default_factory=known_architectures)

    def open(self, model: Model, variant: int | None, reporter: LoadReporter) -> OpenedModel:
        if model.name not in self.architectures:
            raise InvalidParameter(
                "model", f"the architecture of {model.name} is not known without its files; a dry run knows "
                f"{', '.join(self.architectures)}",
            )  # fmt: skip
        return OpenedArchitecture(model, self.architectures[model.name], variant, self.backend)
