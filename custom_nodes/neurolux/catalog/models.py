"""The models that the pack knows: a frozen record per model, with the sources of its files.

Imports neither torch nor ComfyUI, so schemas, routes and tests can use it at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import ModelNotFound
from ..planning.records import ComponentShape
from .limits import Defaults, Limits

FACTS = ("license", "size", "settings")
"""What the catalog states of a model that only its publisher can know."""
Purpose = Literal["any", "fill", "edit", "draw-edit"]
"""What a model was trained for: ``fill`` only completes masked images, ``edit`` edits an image by an instruction,
``draw-edit`` does so too where it is given an image, and draws from a prompt where it is not."""
EDITS: tuple[Purpose, ...] = ("edit", "draw-edit")


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
    """Weight files in ComfyUI's own folders, by component. A checkpoint appears once for each component in it.

    ``lora`` is permanently merged into the denoiser: some distilled models are published as a LoRA.
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
    """The distilled denoiser for one number of steps, and the scheduler settings that override the model's own."""

    repo: str
    file: str
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    component: str = "unet"
    """The component of the pipeline that the weights belong to."""


@dataclass(frozen=True)
class SchedulerChoice:
    """The scheduler to sample a model with, if it differs from the one in the model's folder."""

    class_name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """One model: its source, its licence, its limits and its defaults."""

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
    """Name patterns of single files that hold this model, by component. ``checkpoint``: a file with all components.
    ``{steps}`` in a name stands for the number of steps that the file was distilled for."""
    local: Mapping[int | None, SingleFilesSource] = field(default_factory=dict)
    """Single files on this machine that make the download unnecessary, by the number of steps."""
    components: Mapping[str, ComponentShape] = field(default_factory=dict)
    """Sizes of its components, so memory can be planned before anything is downloaded; empty if unknown."""
    force_upcast_vae: bool = True
    """Whether the VAE's config requires fp32 when the rest of the pipeline computes in fp16."""
    purpose: Purpose = "any"
    verified: Mapping[str, str] = field(default_factory=dict)
    """Where each fact was checked: ``license``, ``size`` (of the download), ``settings`` (steps, guidance, scheduler).
    A fact that is missing here could not be checked."""
    terms: str = ""
    """What the licence asks beyond naming the author, or forbids: conditions of use, revenue limits."""
    lora_learning_rate: float = 1e-4
    """The default learning rate for training a LoRA."""

    @property
    def step_distilled(self) -> bool:
        """Whether each checkpoint works for one number of steps only (SDXL-Lightning)."""
        return self.limits.num_inference_steps.choices is not None

    @property
    def shares_components(self) -> bool:
        """Whether its checkpoints differ in the denoiser alone. Single files have other parts of their own."""
        return self.step_distilled and not self.local

    def variant(self, steps: int) -> int | None:
        """The checkpoint for ``steps`` (0 = the default), by its number of steps; None for a model with only one.

        Raises InvalidParameter if there is no checkpoint for that number.
        """
        if not self.step_distilled:
            return None
        steps = steps or self.defaults.num_inference_steps
        self.limits.num_inference_steps.check(steps)
        return steps

    @property
    def unverified(self) -> tuple[str, ...]:
        """The facts that could not be checked."""
        return unverified_facts(self.verified)

    @property
    def uses_negative_prompt(self) -> bool:
        """Whether a negative prompt can have any effect."""
        return self.limits.negative_prompt

    @property
    def passes(self) -> int:
        """How many passes of the denoiser a step takes by default: 2 with classifier-free guidance."""
        return 2 if self.uses_negative_prompt and self.defaults.guidance_scale > 1 else 1


def unverified_facts(verified: Mapping[str, str], facts: tuple[str, ...] = FACTS) -> tuple[str, ...]:
    """The facts without a place where they were checked."""
    return tuple(name for name in facts if not verified.get(name))


@dataclass(frozen=True)
class Catalog:
    """All known models in display order. A model folder replaces a catalog entry of the same name."""

    models: Mapping[str, Model]
    fallback: str
    """The model that ships with the project."""
    default: str
    """The model for requests that name none; the fallback until library/known_models.py has chosen."""

    def get(self, name: str) -> Model:
        """The model called ``name``. Raises ModelNotFound, which lists the known models."""
        try:
            return self.models[name]
        except KeyError:
            raise ModelNotFound(name, self.models) from None

    def names(self, family: str | None = None) -> list[str]:
        """The names of all models, or of one family."""
        return [name for name, model in self.models.items() if family in (None, model.family)]

    def with_models(self, models: Iterable[Model]) -> Catalog:
        """This catalog with ``models`` added. They replace entries of the same name."""
        return replace(self, models={**self.models, **{model.name: model for model in models}})
