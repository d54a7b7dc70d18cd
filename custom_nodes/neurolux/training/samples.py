"""Sample images of a trained LoRA: the same images with it and without it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..adapters.borrow import borrow
from ..errors import InvalidParameter
from ..loading.handle import AppliedLora, PipelineHandle
from ..stages.decode import decode
from ..stages.latent import empty_latent
from ..stages.prompts.encode import encode
from ..stages.sample import plan_sample, sample
from ..weights.stamps import stamp_file
from .image_set import TrainingSet, spoken
from .lora import TrainingReporter
from .settings import LoraSettings

MOST_SAMPLES = 8


@dataclass(frozen=True)
class SampleSettings:
    """Which sample images to make. Raises InvalidParameter for too many."""

    prompt: str
    """Empty: the trigger word, or the first image's caption."""
    count: int
    """0: none."""

    def __post_init__(self) -> None:
        if not 0 <= self.count <= MOST_SAMPLES:
            raise InvalidParameter("samples", f"samples {self.count} is outside 0 to {MOST_SAMPLES}")

    def text(self, images: TrainingSet, trigger: str) -> str:
        """The prompt of the sample images."""
        return self.prompt.strip() or trigger or spoken(images.images[0], trigger)

    def steps(self, handle: PipelineHandle) -> int:
        """The steps of all sample images, with and without the LoRA."""
        return 2 * self.count * sampling_steps(handle)


def sample_both(
    handle: PipelineHandle, lora: Path, text: str, count: int, settings: LoraSettings, progress: TrainingReporter
) -> tuple[torch.Tensor, torch.Tensor]:
    """``count`` images with the file ``lora``, and the same images without it."""
    made = []
    for one, how in ((with_trained(handle, lora), "with"), (replace(handle), "without")):
        progress.phase(f"Sampling {count} images {how} the LoRA", long=True)
        made.append(sample_images(one, text, settings.seed, count, settings.side, progress))
    return made[0], made[1]


def sample_images(
    handle: PipelineHandle, prompt: str, seed: int, count: int, side: int, progress: TrainingReporter
) -> torch.Tensor:
    """``count`` images (count, side, side, 3) in [0, 1], equal to those of the nodes."""
    loaded = borrow(handle)
    latent = {"samples": empty_latent(handle.model, side, side, count)}
    span = progress.sampling(count * sampling_steps(handle))
    request = plan_sample(handle.model, handle.spec.variant, latent, seed)
    return decode(loaded, sample(loaded, request, encode(loaded, prompt), None, span=span))


def sampling_steps(handle: PipelineHandle) -> int:
    """The steps of one sample image."""
    return handle.spec.variant or handle.model.defaults.num_inference_steps


def with_trained(handle: PipelineHandle, lora: Path) -> PipelineHandle:
    """``handle`` with the file ``lora`` at full strength, as Apply LoRA returns it."""
    return replace(handle, loras=(AppliedLora(stamp_file(lora.name, lora), 1.0, 1.0),))
