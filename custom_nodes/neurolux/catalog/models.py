"""The models that the pack knows: one frozen record each, with the sources of its files.

Imports neither torch nor ComfyUI, so schemas, routes and tests can ask at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import ModelNotFound
from ..planning.records import ComponentShape
from .limits import Defaults, Limits

Purpose = Literal["any", "fill", "edit"]
"""What a model was trained for: ``fill`` only completes masked images, ``edit`` follows an instruction."""


@dataclass(frozen=True)
class RepoFiles:
    """Files of one Hugging Face repository, as glob patterns."""

    repo: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class RepoSource(RepoFiles):
    """A diffusers pipeline on the Hugging Face Hub, downloaded on first use."""

    variant: str | None = None
    gated: bool = False
    download_bytes: int | None = None


@dataclass(frozen=True)
class FolderSource:
    """A diffusers folder on this machine: a user's own, or one that ships with the project."""

    path: Path
    bundled: bool = False


@dataclass(frozen=True)
class SingleFilesSource:
    """Weight files in ComfyUI's own folders, by the component that is in them; a checkpoint is named several times.

    ``lora`` is added to the denoiser for good: a distilled model that is shipped as a LoRA.
    """

    components: Mapping[str, Path]
    lora: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file, once."""
        return tuple(dict.fromkeys([*self.components.values(), *([self.lora] if self.lora else [])]))


Source = RepoSource | FolderSource | SingleFilesSource


@dataclass(frozen=True)
class Checkpoint:
    """The distilled denoiser for one number of steps, and what its scheduler needs beyond the model's own."""

    repo: str
    file: str
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    component: str = "unet"
    """Whose weights they are, in the pipeline."""


@dataclass(frozen=True)
class SchedulerChoice:
    """The scheduler a model is sampled with, where it is not the one its folder names."""

    class_name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """One model: where it comes from, what it may do, what it does when not told."""

    name: str
    title: str
    family: str
    license: str
    commercial_use: bool
    source: Source
    defaults: Defaults
    limits: Limits
    max_sequence_length: int
    vae: RepoFiles | None = None
    scheduler: SchedulerChoice | None = None
    checkpoints: Mapping[int, Checkpoint] = field(default_factory=dict)
    patterns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of single files that hold this model, by component (``checkpoint``: all of them; ``{steps}`` in a name
    stands for the number of steps that it was distilled for)."""
    local: Mapping[int | None, SingleFilesSource] = field(default_factory=dict)
    """Single files that were found on this machine and spare the download, by the number of steps."""
    components: Mapping[str, ComponentShape] = field(default_factory=dict)
    """How large its parts are, so that memory can be planned before anything is downloaded; empty where not known."""
    force_upcast_vae: bool = True
    """Whether the VAE's config asks for fp32 where the rest computes in fp16."""
    purpose: Purpose = "any"
    lora_learning_rate: float = 1e-4
    """What a LoRA is trained with unless told otherwise."""

    @property
    def step_distilled(self) -> bool:
        """Whether a checkpoint is good for one number of steps only (SDXL-Lightning)."""
        return self.limits.num_inference_steps.choices is not None

    def variant(self, steps: int) -> int | None:
        """The checkpoint that ``steps`` (0 = the default) chooses; None for a model that has only one.

        Raises InvalidParameter where there is no checkpoint for that number.
        """
        if not self.step_distilled:
            return None
        wanted = steps or self.defaults.num_inference_steps
        self.limits.num_inference_steps.check(wanted)
        return wanted

    @property
    def uses_negative_prompt(self) -> bool:
        """Whether a negative prompt can have any effect."""
        return self.limits.negative_prompt


@dataclass(frozen=True)
class Catalog:
    """All known models in the order to show them; a folder replaces a catalog entry of the same name."""

    models: Mapping[str, Model]
    default: str
    fallback: str

    def get(self, name: str) -> Model:
        """The model called ``name``; raises ModelNotFound, which lists those there are."""
        try:
            return self.models[name]
        except KeyError:
            raise ModelNotFound(name, self.models) from None

    def names(self, family: str | None = None) -> list[str]:
        """The names of all models, or of one family."""
        return [name for name, model in self.models.items() if family in (None, model.family)]

    def with_models(self, models: Iterable[Model]) -> Catalog:
        """This catalog and ``models``, which win over entries of the same name."""
        return replace(self, models={**self.models, **{model.name: model for model in models}})
