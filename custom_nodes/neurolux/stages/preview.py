"""What the image will look like, from the latents of two consecutive steps.

diffusers' step callback gives the noisy latents, not the prediction. Both of our schedules are straight lines between
two steps, so the prediction follows from the slope: with v = (x1 - x0) / (s1 - s0), the clean latent is x1 - s1 * v.
This holds for flow matching and for Euler in sigma space alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from ..catalog.models import FolderSource
from ..families.registry import family_of
from ..images.pixels import as_image
from ..loading.loaded import LoadedPipeline
from ..weights.user_files import read_json
from .decode import to_raw, vae_input

SMALL_VAE_PARAMETERS = 5_000_000
_log = logging.getLogger(__name__)
RGB_FILE = "latent_rgb.json"
Previewer = Callable[[torch.Tensor], Image.Image]


def predicted_clean(before: torch.Tensor, after: torch.Tensor, sigma_before: float, sigma_after: float) -> torch.Tensor:
    """The clean latents that the step from ``before`` to ``after`` aims at."""
    if sigma_before == sigma_after:
        return after
    slope = (after - before) / (sigma_after - sigma_before)
    return after - sigma_after * slope


def make_previewer(loaded: LoadedPipeline) -> Previewer | None:
    """How to show latents (1, C, h, w) of this pipeline; None when the user turned previews off or nothing fits."""
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod

    if latent_preview.args.preview_method == LatentPreviewMethod.NoPreviews:
        return None
    factors = folder_factors(loaded)
    if factors is not None:
        return lambda latents: project(latents, *factors)
    if has_small_vae(loaded):
        return lambda latents: decode_preview(loaded, latents)
    return comfy_previewer(loaded)


def has_small_vae(loaded: LoadedPipeline) -> bool:
    """Whether the VAE is so small that decoding every step costs nothing."""
    return sum(weight.numel() for weight in loaded.pipe.vae.parameters()) < SMALL_VAE_PARAMETERS


def comfy_previewer(loaded: LoadedPipeline) -> Previewer | None:
    """ComfyUI's own previewer for the family's latents (latent2rgb, or TAESD where the user has it)."""
    import comfy.latent_formats
    import latent_preview

    space = family_of(loaded.model.family).latent
    latent_format = getattr(comfy.latent_formats, space.comfy_format)()
    if space.channels_with(loaded.pipe.vae) != latent_format.latent_channels:
        return None
    previewer = latent_preview.get_previewer(loaded.device, latent_format)
    if previewer is None:
        return None
    if latent_format.latent_dimensions == 3:  # of a video model, of which an image is one frame
        return lambda latents: previewer.decode_latent_to_preview(latents.float().unsqueeze(2))
    return lambda latents: previewer.decode_latent_to_preview(latents.float())


def folder_factors(loaded: LoadedPipeline) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A local model's own ``latent_rgb.json``: ``{"factors": [[r, g, b] per channel], "bias": [r, g, b]}``."""
    source = loaded.model.source
    if not isinstance(source, FolderSource) or not (source.path / RGB_FILE).is_file():
        return None
    try:
        document = read_json(source.path / RGB_FILE)
        factors = torch.tensor(document["factors"], dtype=torch.float32)
        return factors, torch.tensor(document.get("bias", [0.0, 0.0, 0.0]), dtype=torch.float32)
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("NeuroLux: no previews from %s: %s", source.path / RGB_FILE, error)
        return None


def project(latents: torch.Tensor, factors: torch.Tensor, bias: torch.Tensor) -> Image.Image:
    """Latents (1, C, h, w) as a small image: one matrix from channels to colours, in [-1, 1]."""
    pixels = latents[0].float().cpu().movedim(0, -1) @ factors + bias
    return as_image((pixels + 1) / 2)


def decode_preview(loaded: LoadedPipeline, latents: torch.Tensor) -> Image.Image:
    """The real decoder's image."""
    vae: Any = loaded.pipe.vae
    decoded = vae.decode(vae_input(loaded, to_raw(loaded, latents)), return_dict=False)[0]
    return as_image(decoded[0].float().cpu().movedim(0, -1) / 2 + 0.5)
