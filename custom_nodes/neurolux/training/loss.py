"""What a LoRA's training makes small: the error of the denoiser on a noisy image, for each family of models.

The arithmetic is that of diffusers' own scripts: examples/dreambooth/train_dreambooth_lora_flux.py with
``--weighting_scheme logit_normal --guidance_scale 1``, and examples/text_to_image/train_text_to_image_lora_sdxl.py.
All chance is drawn on the CPU from the generator that is given, so a seed means the same on every device.

Like load.py this imports diffusers when it is imported: import it late.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.training_utils import compute_density_for_timestep_sampling

from ..loading.loaded import LoadedPipeline

FLUX_TARGETS = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
)  # fmt: skip
SDXL_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The attention projections, by the ends of their names."""
TRAINING_GUIDANCE = 1.0
"""What FLUX.1-dev's guidance embedding gets: at 1 an image is as the captions say, without exaggeration."""


@dataclass(frozen=True)
class Example:
    """One image as the denoiser is shown it; all on the CPU."""

    latent: torch.Tensor
    """(1, C, h, w), as the denoiser takes it."""
    embeds: torch.Tensor
    """(1, tokens, width)."""
    pooled: torch.Tensor
    """(1, width)."""
    original: tuple[int, int]
    """Width and height of the image as it was given."""
    crop: tuple[int, int]
    """Left and top of the cut."""


class Objective(ABC):
    """The loss of one family."""

    targets: tuple[str, ...]

    def __init__(self, loaded: LoadedPipeline) -> None:
        self.denoiser: Any = loaded.denoiser
        self.device = loaded.device
        self.dtype = loaded.precision.main

    def loss(self, batch: Sequence[Example], generator: torch.Generator) -> torch.Tensor:
        """The mean squared error over ``batch``, float32."""
        latents = self._stacked([example.latent for example in batch])
        noise = torch.randn(latents.shape, generator=generator).to(self.device, self.dtype)
        predicted, target = self._compare(batch, latents, noise, generator)
        return ((predicted.float() - target.float()) ** 2).flatten(1).mean(1).mean()

    def _stacked(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(tensors)).to(self.device, self.dtype)

    @abstractmethod
    def _compare(
        self, batch: Sequence[Example], latents: torch.Tensor, noise: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the denoiser says of the noisy latents, and what it should say."""


class FluxObjective(Objective):
    """Rectified flow: the velocity from the image to the noise, at times drawn from a logit-normal distribution."""

    targets = FLUX_TARGETS

    def __init__(self, loaded: LoadedPipeline) -> None:
        super().__init__(loaded)
        # from its configuration: sampling has left the pipeline's own one with the timesteps of the last image
        self._scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(loaded.pipe.scheduler.config)

    def _compare(
        self, batch: Sequence[Example], latents: torch.Tensor, noise: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count, channels, height, width = latents.shape
        density = compute_density_for_timestep_sampling("logit_normal", count, 0.0, 1.0, generator=generator)
        last = self._scheduler.config.num_train_timesteps - 1
        places = (density * (last + 1)).long().clamp(max=last)
        times = self._scheduler.timesteps[places].to(self.device)
        levels = self._scheduler.sigmas[places].to(self.device, self.dtype).view(-1, 1, 1, 1)
        noisy = (1.0 - levels) * latents + levels * noise
        embeds = self._stacked([example.embeds for example in batch])
        guided = self.denoiser.config.guidance_embeds
        predicted = self.denoiser(
            hidden_states=FluxPipeline._pack_latents(noisy, count, channels, height, width),
            timestep=times / 1000,
            guidance=torch.full([count], TRAINING_GUIDANCE, device=self.device) if guided else None,
            pooled_projections=self._stacked([example.pooled for example in batch]),
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=self.device, dtype=self.dtype),
            img_ids=FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, self.device, self.dtype),
            return_dict=False,
        )[0]
        target = FluxPipeline._pack_latents(noise - latents, count, channels, height, width)
        return predicted, target


class SDXLObjective(Objective):
    """Noise, or velocity where the model predicts that, at times drawn evenly."""

    targets = SDXL_TARGETS

    def __init__(self, loaded: LoadedPipeline, side: int) -> None:
        super().__init__(loaded)
        self._scheduler: Any = DDPMScheduler.from_config(loaded.pipe.scheduler.config)
        self._side = side

    def _compare(
        self, batch: Sequence[Example], latents: torch.Tensor, noise: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        steps = self._scheduler.config.num_train_timesteps
        times = torch.randint(0, steps, (len(batch),), generator=generator).to(self.device)
        noisy = self._scheduler.add_noise(latents, noise, times)
        sizes = [
            [*reversed(example.original), *reversed(example.crop), self._side, self._side] for example in batch
        ]  # heights before widths, tops before lefts (SDXL paper, 2.2)
        predicted = self.denoiser(
            noisy,
            times,
            encoder_hidden_states=self._stacked([example.embeds for example in batch]),
            added_cond_kwargs={
                "text_embeds": self._stacked([example.pooled for example in batch]),
                "time_ids": torch.tensor(sizes, device=self.device, dtype=self.dtype),
            },
            return_dict=False,
        )[0]
        if self._scheduler.config.prediction_type == "v_prediction":
            return predicted, self._scheduler.get_velocity(latents, noise, times)
        return predicted, noise


def objective_for(loaded: LoadedPipeline, side: int) -> Objective:
    """The loss of the pipeline's family."""
    return FluxObjective(loaded) if loaded.model.family == "flux" else SDXLObjective(loaded, side)


def prediction_type(loaded: LoadedPipeline) -> str | None:
    """What an SDXL denoiser predicts; None for FLUX, where there is no choice."""
    if loaded.model.family == "flux":
        return None
    return str(loaded.pipe.scheduler.config.get("prediction_type", "epsilon"))
