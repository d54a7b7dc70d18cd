"""What a LoRA's training makes small: the error of the denoiser on a noisy image, by the family's own formula.

All chance is drawn on the CPU from the generator that is given, so a seed means the same on every device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..families.spec import TrainingBatch
from ..loading.loaded import LoadedPipeline
from .settings import formula_of


@dataclass(frozen=True)
class Example:
    """One image as the denoiser is shown it; all on the CPU."""

    latent: torch.Tensor
    """(1, C, h, w), as the denoiser takes it."""
    prompt: Mapping[str, torch.Tensor]
    """The encoder's tensors by name, (1, ...); the first has one row for each token."""
    original: tuple[int, int]
    """Width and height of the image as it was given."""
    crop: tuple[int, int]
    """Left and top of the cut."""

    @property
    def tokens(self) -> int:
        """How many tokens the caption takes."""
        return next(iter(self.prompt.values())).shape[1]


class Objective:
    """The loss of one pipeline."""

    def __init__(self, loaded: LoadedPipeline, side: int) -> None:
        self.device = loaded.device
        self.dtype = loaded.precision.main
        self._formula = formula_of(loaded.model)
        self._denoiser: Any = loaded.denoiser
        self._scheduler = self._formula.scheduler(loaded.pipe.scheduler.config)
        self._side = side

    @property
    def targets(self) -> tuple[str, ...]:
        """The layers that get a LoRA, by the ends of their names."""
        return self._formula.targets

    def loss(self, batch: Sequence[Example], generator: torch.Generator) -> torch.Tensor:
        """The mean squared error over ``batch``, float32."""
        latents = torch.cat([self._placed(example.latent) for example in batch])
        noise = torch.randn(latents.shape, generator=generator).to(self.device, self.dtype)
        shown = TrainingBatch(
            latents=latents,
            noise=noise,
            prompt={name: [self._placed(example.prompt[name]) for example in batch] for name in batch[0].prompt},
            originals=[example.original for example in batch],
            crops=[example.crop for example in batch],
            side=self._side,
            generator=generator,
        )
        predicted, target = self._formula.compare(self._denoiser, self._scheduler, shown)
        return ((predicted.float() - target.float()) ** 2).flatten(1).mean(1).mean()

    def _placed(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)


def prediction_type(loaded: LoadedPipeline) -> str | None:
    """What the denoiser predicts; None if the family has no choice. Raises InvalidParameter as formula_of does."""
    return formula_of(loaded.model).prediction_type(loaded.pipe.scheduler.config)
