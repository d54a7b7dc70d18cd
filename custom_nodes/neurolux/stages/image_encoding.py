"""Images through a VAE's encoder, by our own call or by a diffusers pipeline that makes it.

A pipeline casts the image to the denoiser's type, and an SDXL one recasts the whole VAE for the call. Here weights
stay as they are, because ComfyUI's memory manager knows them by their bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.modeling_outputs import AutoencoderKLOutput

from ..families.registry import family_of
from ..images.frames import Frame, cycled, fitted_image, fitted_mask, same_size
from ..images.pixels import check_finite, rgb
from ..loading.loaded import LoadedPipeline
from ..loading.replanning import fit
from ..loading.working_memory import image_encoding_memory, image_encoding_type, run_stage
from ..memory.vae_tiling import tiling
from .latent import ImageOrigin

REMEDY = "Use a smaller image, or a leaner offload (stream or sequential) on the loader."


@dataclass(frozen=True)
class CastDistribution:
    """The encoder's distribution, its samples in the type that the pipeline computes in."""

    distribution: Any
    dtype: torch.dtype

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """One draw, (B, C, h, w)."""
        return self.distribution.sample(generator).to(self.dtype)

    def mode(self) -> torch.Tensor:
        """The middle, (B, C, h, w)."""
        return self.distribution.mode().to(self.dtype)


class Encoding(torch.nn.Module):
    """``vae.encode`` as a module's call, so that it can be made with other weights for once."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, encode: Any, image: torch.Tensor) -> Any:
        """The distribution of ``image`` (B, 3, H, W) in [-1, 1]."""
        return encode(image).latent_dist


@contextmanager
def images_encoded_in_place(loaded: LoadedPipeline) -> Iterator[None]:
    """Meanwhile the VAE encodes images of any type as diffusers would, and is not recast.

    diffusers computes the encoder of an SDXL VAE in fp32 (its ``force_upcast``); so do we, with weights made for the
    call, unless they are streamed and never there at once.
    """
    vae: Any = loaded.pipe.vae
    upcast = bool(vae.config.get("force_upcast"))
    original = vae.encode
    in_fp32 = upcast and image_encoding_type(loaded) == "fp32" and loaded.placement.in_place("vae")

    def encode(image: torch.Tensor, return_dict: bool = True) -> Any:
        if in_fp32 and vae.dtype != torch.float32:
            weights = {f"vae.{name}": weight.float() for name, weight in vae.named_parameters() if encodes(name)}
            found = torch.func.functional_call(Encoding(vae), weights, (original, image.float()))
        else:
            found = original(image.to(vae.dtype)).latent_dist
        output = AutoencoderKLOutput(latent_dist=CastDistribution(found, image.dtype))  # pyright: ignore[reportArgumentType]
        return output if return_dict else (output.latent_dist,)

    vae.encode = encode
    if upcast:
        vae.register_to_config(force_upcast=False)
    try:
        yield
    finally:
        del vae.encode
        if upcast:
            vae.register_to_config(force_upcast=True)


def encodes(name: str) -> bool:
    """Whether a weight of the VAE is the encoder's."""
    return name.startswith(("encoder.", "quant_conv."))


def encode_image(loaded: LoadedPipeline, image: torch.Tensor) -> torch.Tensor:
    """One image (1, H, W, 3) in [0, 1] as a LATENT's samples (1, C, h, w), the middle of its distribution, float32."""
    vae: Any = loaded.pipe.vae
    space = family_of(loaded.model.family).latent
    pixels = loaded.pipe.image_processor.preprocess(image.movedim(-1, 1)).to(loaded.device)
    with images_encoded_in_place(loaded):
        return space.from_vae(vae, vae.encode(pixels).latent_dist.mode()).float().cpu()


def from_raw(loaded: LoadedPipeline, samples: torch.Tensor) -> torch.Tensor:
    """Raw VAE latents (B, C, h, w) as the denoiser takes them: the other way round of ``decode.to_raw``."""
    config: Any = loaded.pipe.vae.config
    samples = samples.to(loaded.device, loaded.precision.main)
    return family_of(loaded.model.family).latent.from_raw(config, samples)


def encode_images(
    loaded: LoadedPipeline, images: torch.Tensor, mask: torch.Tensor | None, frame: Frame, count: int = 1
) -> dict[str, Any]:
    """Images (B, H, W, 3) in [0, 1], each ``count`` times in turn, as ComfyUI's LATENT.

    ``samples``: (B, C, h, w) in raw VAE space, the middle of what the encoder gives; ``image``: the pixels themselves
    (B, H, W, 3); ``noise_mask``: (B, 1, H, W), 1 where the mask (B, H, W) or (1, H, W) is above 0, in whole latent
    pixels, which are all that a model can keep or redraw.
    """
    original = rgb(images).detach().float().cpu().clamp(0, 1)
    model_images = fitted_image(original, frame)
    width, height = frame.size
    fit(loaded, width, height, encodes=image_encoding_type(loaded))
    vae: Any = loaded.pipe.vae
    scale = loaded.pipe.vae_scale_factor

    def work() -> torch.Tensor:
        placed = loaded.placement.stage(["vae"], image_encoding_memory(loaded, width, height))
        with placed, tiling(vae, loaded.placement.plan.vae_tile, scale), torch.no_grad():
            return torch.cat([encode_image(loaded, image[None]) for image in model_images])

    samples = run_stage(loaded, f"encoding {images.shape[0]} x {width}x{height}", REMEDY, work)
    check_finite(samples, "the encoded images")
    samples = samples.repeat(count, 1, 1, 1)
    given = None if mask is None else cycled(same_size(mask, frame.given), len(samples))
    cells = family_of(loaded.model.family).latent.scale
    noise_mask = None if given is None else whole_cells(fitted_mask(given, frame), cells)[:, None]
    origin = ImageOrigin(samples, original.repeat(count, 1, 1, 1), given, frame, noise_mask)
    latent: dict[str, Any] = {
        "samples": samples,
        "image": model_images.repeat(count, 1, 1, 1),
        "image_origin": origin,
    }
    return latent if noise_mask is None else {**latent, "noise_mask": noise_mask}


def whole_cells(mask: torch.Tensor, scale: int) -> torch.Tensor:
    """1 in every latent pixel, ``scale`` pixels a side, in which a mask (B, H, W) has anything masked; 0 elsewhere."""
    cells = torch.nn.functional.max_pool2d((mask > 0).float()[:, None], scale)
    return torch.nn.functional.interpolate(cells, scale_factor=scale)[:, 0]
