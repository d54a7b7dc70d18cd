"""A latent into images, by the pipeline's own VAE and image processor."""

from __future__ import annotations

from typing import Any

import torch

from ..families.registry import family_of
from ..images.pixels import check_finite
from ..loading.loaded import LoadedPipeline
from ..loading.replanning import fit
from ..loading.working_memory import decoding_memory, run_stage
from ..memory.vae_tiling import tiling
from .latent import check_space

REMEDY = "Use a smaller width and height, or a leaner offload (stream or sequential) on the loader."

OVERFLOW = (
    "the VAE's values were too large for {kind}, so it was run again in fp32, which takes longer; "
    "load the model with precision bf16 or fp32 to avoid that"
)


def decode(loaded: LoadedPipeline, samples: torch.Tensor) -> torch.Tensor:
    """Decode raw VAE latents (B, C, h, w) into images (B, H, W, 3) in [0, 1], float32 on the CPU. Raises
    InvalidParameter for another latent space.

    One by one: an image of a batch is the same, bit for bit, as the image alone. In tiles where the plan says so.
    """
    vae: Any = loaded.pipe.vae
    space = family_of(loaded.model.family).latent
    check_space(samples, space.channels_with(vae), loaded.model)
    scale = loaded.pipe.vae_scale_factor
    height, width = (side * scale * space.patch for side in samples.shape[2:])

    fit(loaded, width, height)

    def work() -> torch.Tensor:
        placed = loaded.placement.stage(["vae"], decoding_memory(loaded, width, height))
        with placed, tiling(vae, loaded.placement.plan.vae_tile, scale), torch.no_grad():
            # split, unlike indexing, leaves the strides as diffusers has them, by which convolutions choose their way.
            return torch.cat([decode_one(loaded, latent) for latent in samples.split(1)])

    check_finite(samples, "the latents given to Decode", "Look at the node that made them.")
    return run_stage(loaded, f"decoding {samples.shape[0]} x {width}x{height}", REMEDY, work)


def decode_one(loaded: LoadedPipeline, latent: torch.Tensor) -> torch.Tensor:
    """Decode one raw latent (1, C, h, w) into (1, H, W, 3). Raises NotFinite.

    SDXL's original VAE overflows in fp16; the known cure is fp32.
    """
    vae: Any = loaded.pipe.vae
    image = vae.decode(vae_input(loaded, latent.to(loaded.device, vae.dtype)), return_dict=False)[0]
    if vae.dtype != torch.float32 and not bool(torch.isfinite(image).all()) and loaded.placement.in_place("vae"):
        image = decode_in_fp32(vae, vae_input(loaded, latent.to(loaded.device)))
        loaded.unreported_warnings.append(OVERFLOW.format(kind=str(vae.dtype).removeprefix("torch.")))
    check_finite(image, f"the images decoded by {loaded.model.name}")
    image = loaded.pipe.image_processor.postprocess(image, output_type="pt")
    return image.cpu().permute(0, 2, 3, 1).float().contiguous()


def vae_input(loaded: LoadedPipeline, samples: torch.Tensor) -> torch.Tensor:
    """What the VAE's decoder takes, from the samples of a LATENT."""
    return family_of(loaded.model.family).latent.to_vae(loaded.pipe.vae, samples)


class Decoding(torch.nn.Module):
    """``vae.decode`` as a module's call, so that it can be made with other weights for once."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """The image (1, 3, H, W) of ``latent`` (1, C, h, w)."""
        return self.vae.decode(latent, return_dict=False)[0]


def decode_in_fp32(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    """Decode with weights that are fp32 for this call. The VAE keeps its own: ComfyUI's manager knows their bytes."""
    weights = {
        f"vae.{name}": value.float() for name, value in vae.named_parameters() if not name.startswith("encoder.")
    }
    return torch.func.functional_call(Decoding(vae), weights, (latent.float(),))


def to_raw(loaded: LoadedPipeline, latents: torch.Tensor) -> torch.Tensor:
    """The denoiser's latents (1, C, h, w) as ComfyUI's LATENT holds them: in the space of its VAE.

    The arithmetic and its number format are those of the pipelines' own last lines, so that the decoded image is theirs
    to the bit.
    """
    vae: Any = loaded.pipe.vae
    return family_of(loaded.model.family).latent.to_raw(vae.config, latents.to(vae.dtype))
