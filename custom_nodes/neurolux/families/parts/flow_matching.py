"""What training by flow matching is in every family: noisy latents lie on the line from the image to the noise.

The arithmetic is that of diffusers' training scripts with ``--weighting_scheme logit_normal``, for instance
examples/dreambooth/train_dreambooth_lora_flux.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..spec import Config, TrainingBatch

if TYPE_CHECKING:
    import torch


def training_scheduler(config: Config) -> Any:
    """A fresh scheduler: after sampling, the pipeline's own one has the timesteps of the last image."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler.from_config(config)


def noised(scheduler: Any, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents of ``batch`` with noise, (B, C, h, w), and how much of it: times from 0 to 1000, (B,).

    The times are drawn from a logit-normal distribution. The denoiser predicts ``noise - latents``, the velocity.
    """
    from diffusers.training_utils import compute_density_for_timestep_sampling

    latents = batch.latents
    device, dtype = latents.device, latents.dtype
    density = compute_density_for_timestep_sampling("logit_normal", len(latents), 0.0, 1.0, generator=batch.generator)
    last = scheduler.config.num_train_timesteps - 1
    places = (density * (last + 1)).long().clamp(max=last)
    levels = scheduler.sigmas[places].to(device, dtype).view(-1, 1, 1, 1)
    return (1.0 - levels) * latents + levels * batch.noise, scheduler.timesteps[places].to(device)
