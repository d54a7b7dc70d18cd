"""The whole of Train LoRA in ComfyUI: checks, training, loss curve, sample images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import folder_paths
import numpy as np
import torch

from ..adapters.borrow import borrow
from ..loading.handle import PipelineHandle
from ..loading.node_progress import NodeReporter
from .image_set import TrainingSet
from .lora import check_handle, train_lora
from .loss_curve import draw_loss_curve
from .progress import TrainingProgress
from .samples import SampleSettings, sample_both, with_trained
from .settings import LoraSettings, check_settings

CHECKPOINTS = ("neurolux", "training")
"""Below ComfyUI's user folder."""


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What a training made."""

    pipeline: PipelineHandle
    """The pipeline with the new LoRA applied."""
    path: Path
    """The LoRA file."""
    loss_curve: torch.Tensor
    """(1, H, W, 3) in [0, 1]."""
    samples: tuple[torch.Tensor, torch.Tensor] | None
    """Images with the LoRA and the same images without it, each (B, side, side, 3) in [0, 1]; None if none were asked
    for."""
    summary: str
    warnings: tuple[str, ...]


def run_training(
    pipeline: PipelineHandle, images: TrainingSet, settings: LoraSettings, samples: SampleSettings, *, resume: bool
) -> TrainingResult:
    """Train a LoRA into models/loras, and make sample images. Reports its progress on the node that runs.

    Zeros in ``settings`` stand for the model's own values. Raises InvalidParameter or OutOfMemory.
    """
    check_handle(pipeline)
    pipeline = pipeline.for_steps(0)
    settings = check_settings(pipeline.model, settings)
    borrow(pipeline, NodeReporter())
    title = f"{settings.name} on {pipeline.model.name}"
    progress = TrainingProgress(title, settings.steps, samples.steps(pipeline))
    trained = train_lora(
        pipeline,
        images,
        settings,
        resume=resume,
        loras=Path(folder_paths.get_folder_paths("loras")[0]),
        checkpoints=Path(folder_paths.get_user_directory(), *CHECKPOINTS),
        progress=progress,
    )
    made = None
    if samples.count:
        text = samples.text(images, settings.trigger)
        made = sample_both(pipeline, trained.path, text, samples.count, settings, progress)
    return TrainingResult(
        with_trained(pipeline, trained.path),
        trained.path,
        as_image(np.asarray(draw_loss_curve(trained.losses, title))),
        made,
        f"{trained.path.name}: {settings.steps} steps, loss {trained.losses[-1]:.4f}",
        (*trained.warnings, *borrow(pipeline).take_warnings()),
    )


def as_image(pixels: np.ndarray) -> torch.Tensor:
    """An image (H, W, 3) of 8 bits a channel as ComfyUI's IMAGE."""
    return torch.from_numpy(pixels.astype(np.float32) / 255)[None]
