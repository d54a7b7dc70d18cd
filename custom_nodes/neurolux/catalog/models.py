"""The models that the pack knows: one frozen record each, from ``models.toml`` and from ComfyUI's diffusers folders.

Reading the catalog imports neither torch nor ComfyUI, so schemas, routes and tests can ask it at any time.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import InvalidParameter, ModelNotFound
from ..planning.records import ComponentShape

Family = Literal["flux", "sdxl", "sd15"]
Purpose = Literal["any", "fill", "edit"]
"""What a model was trained for: ``fill`` only completes masked images, ``edit`` follows an instruction."""
PACK_FOLDER = Path(__file__).parents[1]
CATALOG_FILE = Path(__file__).with_name("models.toml")


@dataclass(frozen=True)
class SizeLimit:
    """What a width or a height may be, in pixels."""

    minimum: int = 256
    maximum: int = 2048
    multiple_of: int = 16

    def check(self, name: str, value: int) -> None:
        """Raise InvalidParameter unless ``value`` is within bounds and on the grid; names the nearest sizes."""
        if not self.minimum <= value <= self.maximum:
            nearest = self.minimum if value < self.minimum else self.maximum
            raise InvalidParameter(
                name, f"{name} {value} is outside {self.minimum} to {self.maximum} of this model; nearest is {nearest}"
            )
        if value % self.multiple_of:
            lower = value - value % self.multiple_of
            raise InvalidParameter(
                name,
                f"{name} {value} is not a multiple of {self.multiple_of}; "
                f"nearest are {lower} and {lower + self.multiple_of}",
            )


@dataclass(frozen=True)
class StepLimit:
    """Sampling steps: a range, or for a step-distilled model the numbers it has a checkpoint for."""

    minimum: int = 1
    maximum: int = 100
    choices: tuple[int, ...] | None = None

    def check(self, value: int) -> None:
        """Raise InvalidParameter unless the model can sample in ``value`` steps."""
        if self.choices is not None and value not in self.choices:
            choices = ", ".join(map(str, self.choices))
            raise InvalidParameter(
                "num_inference_steps", f"num_inference_steps {value} is not available; this model has {choices}"
            )
        if not self.minimum <= value <= self.maximum:
            raise InvalidParameter(
                "num_inference_steps",
                f"num_inference_steps {value} is outside {self.minimum} to {self.maximum} of this model",
            )


@dataclass(frozen=True)
class GuidanceLimit:
    """What the guidance scale may be."""

    minimum: float = 0.0
    maximum: float = 20.0

    def check(self, value: float) -> None:
        """Raise InvalidParameter unless ``value`` is within bounds."""
        if not self.minimum <= value <= self.maximum:
            raise InvalidParameter(
                "guidance_scale",
                f"guidance_scale {value:g} is outside {self.minimum:g} to {self.maximum:g} of this model",
            )


@dataclass(frozen=True)
class CountLimit:
    """How many images one request may ask for."""

    minimum: int = 1
    maximum: int = 8

    def check(self, value: int) -> None:
        """Raise InvalidParameter unless ``value`` is within bounds."""
        if not self.minimum <= value <= self.maximum:
            raise InvalidParameter("num_images", f"num_images {value} is outside {self.minimum} to {self.maximum}")


@dataclass(frozen=True)
class Limits:
    """What a request to this model may ask for."""

    width: SizeLimit = SizeLimit()
    height: SizeLimit = SizeLimit()
    num_inference_steps: StepLimit = StepLimit()
    guidance_scale: GuidanceLimit = GuidanceLimit()
    num_images: CountLimit = CountLimit()
    negative_prompt: bool = False


@dataclass(frozen=True)
class Defaults:
    """What a request gets that does not say."""

    width: int = 1024
    height: int = 1024
    num_inference_steps: int = 28
    guidance_scale: float = 3.5


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
    family: Family
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

    def names(self, family: Family | None = None) -> list[str]:
        """The names of all models, or of one family."""
        return [name for name, model in self.models.items() if family in (None, model.family)]

    def with_models(self, models: Iterable[Model]) -> Catalog:
        """This catalog and ``models``, which win over entries of the same name."""
        return replace(self, models={**self.models, **{model.name: model for model in models}})


def read_catalog(path: Path = CATALOG_FILE) -> Catalog:
    """Read a catalog file. Unknown keys are errors, so that a typing mistake does not pass in silence."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    shared = document.get("limits", {})
    models = {name: parse_model(name, entry, shared, path.parent) for name, entry in document["models"].items()}
    return Catalog(models=models, default=document["default"], fallback=document.get("fallback", document["default"]))


def parse_model(name: str, entry: Mapping[str, Any], shared_limits: Mapping[str, Any], base: Path) -> Model:
    """One ``[models.NAME]`` table as a record; relative bundled paths are resolved against ``base``."""
    vae = entry.get("vae")
    scheduler = entry.get("scheduler")
    return Model(
        name=name,
        title=entry["title"],
        family=entry["family"],
        license=entry["license"],
        commercial_use=entry["commercial_use"],
        source=parse_source(entry["source"], base),
        defaults=Defaults(**entry["defaults"]),
        limits=parse_limits({**shared_limits, **entry.get("limits", {})}),
        max_sequence_length=entry["max_sequence_length"],
        vae=RepoFiles(vae["repo"], tuple(vae["files"])) if vae else None,
        scheduler=SchedulerChoice(scheduler["class"], scheduler["config"]) if scheduler else None,
        checkpoints={
            int(steps): Checkpoint(**checkpoint) for steps, checkpoint in entry.get("checkpoints", {}).items()
        },
        patterns={name: tuple(patterns) for name, patterns in entry.get("single_files", {}).items()},
        components={part: parse_shape(shape) for part, shape in entry.get("components", {}).items()},
        force_upcast_vae=entry.get("components", {}).get("vae", {}).get("force_upcast", True),
        purpose=entry.get("purpose", "any"),
        lora_learning_rate=entry.get("lora_learning_rate", 1e-4),
    )


def parse_shape(entry: Mapping[str, Any]) -> ComponentShape:
    """One component's size. ``blocks`` is in runs of ``[how many, parameters of each]``, in order of use."""
    blocks = tuple(size for count, size in entry.get("blocks", []) for _ in range(count))
    return ComponentShape(entry["parameters"], blocks, entry["stored"])


def parse_source(entry: Mapping[str, Any], base: Path) -> Source:
    """A ``source`` table: its ``kind`` says which record it is."""
    fields = dict(entry)
    kind = fields.pop("kind")
    if kind == "repo":
        return RepoSource(**{**fields, "files": tuple(fields["files"])})
    if kind == "bundled":
        return FolderSource((base / fields["path"]).resolve(), bundled=True)
    raise ValueError(f"unknown source kind {kind!r}: use 'repo' or 'bundled'")


def parse_limits(entry: Mapping[str, Any], base: Limits | None = None) -> Limits:
    """A ``limits`` table over ``base``: what it does not name stays as it is there."""
    base = base or Limits()
    changes: dict[str, Any] = {}
    for name, value in entry.items():
        if name in ("width", "height"):
            changes[name] = replace(getattr(base, name), **spelled_out(value))
        elif name == "num_inference_steps":
            choices = tuple(value["choices"]) if "choices" in value else base.num_inference_steps.choices
            bounds = spelled_out({key: bound for key, bound in value.items() if key != "choices"})
            if "choices" in value:
                bounds = {"minimum": min(value["choices"]), "maximum": max(value["choices"]), **bounds}
            changes[name] = replace(base.num_inference_steps, choices=choices, **bounds)
        elif name in ("guidance_scale", "num_images"):
            changes[name] = replace(getattr(base, name), **spelled_out(value))
        else:
            changes[name] = value
    return replace(base, **changes)


def spelled_out(entry: Mapping[str, Any]) -> dict[str, Any]:
    """``min`` and ``max``, as files and the wire write them, under the records' names."""
    names = {"min": "minimum", "max": "maximum"}
    return {names.get(key, key): value for key, value in entry.items()}
