"""A set of images into a LoRA file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..adapters.borrow import borrow
from ..catalog.models import Model
from ..errors import InvalidParameter
from ..families.files.identify import TRAINED_ON
from ..families.registry import family_of
from ..library.known_models import shipped_catalog
from ..loading.handle import PipelineHandle
from ..loading.loaded import LoadedPipeline
from ..stages.sample import ProgressSpan
from .files import Checkpoint, check_writable, load_checkpoint, save_lora
from .image_set import TrainingSet
from .memory import check_placement
from .settings import LoraSettings, check_model, formula_of


@dataclass(frozen=True)
class TrainedLora:
    """The result of a training."""

    path: Path
    losses: tuple[float, ...]
    warnings: tuple[str, ...]


class TrainingReporter:
    """Receives the progress of a training and ignores it. A subclass may raise, which interrupts the training."""

    def phase(self, text: str, *, long: bool = False) -> None:
        """What is being done now, before and after the steps."""

    def begin(self, done: int) -> None:
        """The steps begin; ``done`` of them were done by an earlier run."""

    def step(self, losses: Sequence[float]) -> None:
        """One more step is done; the losses of all steps so far."""

    def sampling(self, steps: int) -> ProgressSpan | None:
        """The share of the whole progress that the next ``steps`` of sampling take."""


def check_handle(handle: PipelineHandle) -> None:
    """Raise InvalidParameter for a pipeline that something was applied to: its LoRA would need that too."""
    if handle.loras or handle.controls or handle.motion:
        raise InvalidParameter(
            "pipeline",
            "the pipeline has a LoRA, a ControlNet or a motion adapter; link the loader itself to Train LoRA",
        )


def train_lora(
    handle: PipelineHandle,
    images: TrainingSet,
    settings: LoraSettings,
    *,
    resume: bool,
    loras: Path,
    checkpoints: Path,
    progress: TrainingReporter,
) -> TrainedLora:
    """Train, and write the LoRA into ``loras`` under a name that is free. ``settings`` have been checked.

    Raises InvalidParameter or OutOfMemory. When it is interrupted the steps that are done are kept in ``checkpoints``,
    and ``resume`` goes on from there as if nothing had happened.
    """
    from .examples import make_examples
    from .loss import Objective, prediction_type
    from .steps import Training

    loaded = borrow(handle)
    check_model(handle.model, handle.spec.variant, prediction_type(loaded))
    check_placement(loaded)
    for folder in (loras, checkpoints):
        check_writable(folder, settings.name)
    path = checkpoints / f"{settings.name}.safetensors"
    begun_with = common_ground(handle, loaded, images, settings)
    checkpoint = checkpoint_to_resume(path, begun_with, settings) if resume else None
    with torch.inference_mode(False), torch.no_grad():
        examples, warnings = make_examples(loaded, images, settings.trigger, settings.side, progress.phase)
        progress.begin(checkpoint.step if checkpoint else 0)
        training = Training(
            loaded,
            settings,
            Objective(loaded, settings.side),
            examples,
            path,
            begun_with,
            progress.step,
            checkpoint,
        )
        done = training.run()
        layers = {key: weight.to(loaded.precision.main) for key, weight in lora_layers(done).items()}
        metadata = file_metadata(handle, images, settings)
        named = formula_of(handle.model).file_tensors
        written = save_lora(loaded.pipe, loaded.denoiser_name, loras, settings.name, layers, named, metadata)
    return TrainedLora(written, tuple(done.losses), (*model_warnings(loaded), *warnings))


def checkpoint_to_resume(path: Path, begun_with: Mapping[str, Any], settings: LoraSettings) -> Checkpoint | None:
    """The checkpoint of that name, if there is one. Raises InvalidParameter where it is of another training."""
    found = load_checkpoint(path, begun_with)
    if found is not None and found.step > settings.steps:
        raise InvalidParameter(
            "steps",
            f"the training {settings.name} has {found.step} steps already, and {settings.steps} are asked for; "
            "ask for at least as many, or turn resume off to start over",
        )
    return found


def common_ground(
    handle: PipelineHandle, loaded: LoadedPipeline, images: TrainingSet, settings: LoraSettings
) -> dict[str, Any]:
    """What a training that goes on must have in common with the one that was interrupted."""
    planned = loaded.placement.planned(loaded.denoiser_name)
    return {
        "model": handle.spec.model,
        "variant": handle.spec.variant,
        "precision": planned.storage if planned.storage == planned.compute else f"{planned.storage}/{planned.compute}",
        "images": images.digest,
        "rank": settings.rank,
        "learning_rate": settings.learning_rate,
        "batch": settings.batch,
        "resolution": settings.side,
        "seed": settings.seed,
        "trigger": settings.trigger,
    }


def lora_layers(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The LoRA's weights by diffusers' names: without the adapter's."""
    from .steps import ADAPTER

    return {name.replace(f".{ADAPTER}.", "."): weight for name, weight in checkpoint.weights.items()}


def file_metadata(handle: PipelineHandle, images: TrainingSet, settings: LoraSettings) -> dict[str, str]:
    """What the file says of itself, in its header. No date: the same training writes the same bytes."""
    model = handle.model
    record = {
        "base_model": model.name,
        TRAINED_ON: model.family,
        "base_model_license": model.license,
        "rank": settings.rank,
        "alpha": settings.rank,
        "steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "batch": settings.batch,
        "resolution": settings.side,
        "seed": settings.seed,
        "trigger": settings.trigger,
        "images": len(images.images),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": formula_of(model).architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": settings.name,
        "modelspec.trigger_phrase": settings.trigger,
        "modelspec.resolution": f"{settings.side}x{settings.side}",
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in record.items()}


def model_warnings(loaded: LoadedPipeline) -> list[str]:
    """What the user should know of the model that was trained on."""
    model = loaded.model
    if model.defaults.num_inference_steps > formula_of(model).distilled_steps:
        return []
    base = undistilled(model, loaded.placement.planned(loaded.denoiser_name).blocks)
    better = f"{base.title} ({base.name})" if base else "the model that it was made from"
    return [
        f"{model.name} was distilled to sample in {model.defaults.num_inference_steps} steps, and training undoes some "
        f"of that: images may blur. Train on {better}; the LoRA fits both"
    ]


def undistilled(model: Model, blocks: int) -> Model | None:
    """The shipped model of the same architecture, whose denoiser has ``blocks``, that takes all its steps."""
    family = family_of(model.family)
    for other in shipped_catalog().models.values():
        shape = other.components.get(family.denoiser)
        alike = shape is not None and len(shape.blocks) == blocks
        alike = alike and (other.family, other.purpose) == (model.family, model.purpose)
        if alike and other.defaults.num_inference_steps > formula_of(model).distilled_steps:
            return other
    return None
