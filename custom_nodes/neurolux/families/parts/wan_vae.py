"""The VAE of Wan 2.1 and Qwen-Image. It encodes videos; an image is a video of one frame.

Its latents have five axes, (B, C, 1, h, w). The pack's own calls have four; the pipelines' have five.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...planning.records import VaeCosts
from ...weights.file_kinds import TensorInfo
from ...weights.stamps import Shapes
from ..spec import Config, Part, Signature, Tensors

if TYPE_CHECKING:
    import torch


CHANNELS = 16
COSTS = VaeCosts(decode_values=1735, encode_values=970, encoder_parameters=54_000_000)
FILES = ("qwen_image_vae*", "qwen*image*vae*")
"""Name patterns of Qwen-Image's."""
WAN_FILES = ("*wan*",)
"""Wan 2.1's decoder has the same shapes, and other weights."""


def config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of AutoencoderKLQwenImage. Its levels and the statistics of its latents are the class's own."""
    base, pixels = shapes["encoder.conv_in.weight"][:2]
    return {"base_dim": base, "z_dim": shapes["post_quant_conv.weight"][0], "input_channels": pixels}


@cache
def image_vae() -> type:
    """AutoencoderKLQwenImage that also encodes and decodes images of four axes."""
    from diffusers import AutoencoderKLQwenImage
    from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
    from diffusers.models.modeling_outputs import AutoencoderKLOutput

    class ImageVAE(AutoencoderKLQwenImage):
        def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
            """The distribution of images (B, 3, H, W), or of videos (B, 3, F, H, W)."""
            if x.ndim == 5:
                return super().encode(x, return_dict=return_dict)
            video = super().encode(x.unsqueeze(2), return_dict=False)[0]
            found = DiagonalGaussianDistribution(video.parameters[:, :, 0])
            return AutoencoderKLOutput(latent_dist=found) if return_dict else (found,)

        def decode(self, z: torch.Tensor, return_dict: bool = True) -> Any:
            """Images (B, 3, H, W) from (B, C, h, w), or videos from (B, C, F, h, w)."""
            if z.ndim == 5:
                return super().decode(z, return_dict=return_dict)
            made = super().decode(z.unsqueeze(2), return_dict=False)[0][:, :, 0]
            return DecoderOutput(sample=made) if return_dict else (made,)

    return ImageVAE


def empty(config: Config, folder: Path | None) -> Any:
    """The VAE without weights. Its configuration also has what the pack reads of every VAE."""
    kind: Any = image_vae()
    made = kind.from_config(kind.load_config(folder) if folder else config)
    made.register_to_config(latent_channels=made.config.z_dim, force_upcast=False)
    return made


def renamed_original(tensors: Tensors) -> Tensors:
    """Rename Wan's own names, with diffusers' converter."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    return convert_wan_vae_to_diffusers(tensors)


def statistics(config: Config, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean, and one over the standard deviation, of each channel: (1, C, 1, 1). The inverse is rounded, as in
    pipeline_qwenimage.py."""
    import torch

    shape = (1, config["z_dim"], 1, 1)
    mean = torch.tensor(config["latents_mean"]).view(shape)
    inverse = 1.0 / torch.tensor(config["latents_std"]).view(shape)
    return mean.to(like.device, like.dtype), inverse.to(like.device, like.dtype)


def to_raw(config: Config, latents: torch.Tensor) -> torch.Tensor:
    """Convert the denoiser's latents (B, C, h, w) to the VAE's space, like the last lines of pipeline_qwenimage.py."""
    mean, inverse = statistics(config, latents)
    return latents / inverse + mean


def from_raw(config: Config, samples: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`to_raw`."""
    mean, inverse = statistics(config, samples)
    return (samples - mean) * inverse


def of_images(info: TensorInfo, prefix: str) -> bool:
    """Whether it is the convolution of 16 channels that Wan 2.1 has; Wan 2.2 and Qwen-Image 2.1 have more."""
    return info.shape[:2] == (CHANNELS, CHANNELS) and len(info.shape) == 5


WAN_VAE = Part(
    name="wan-vae",
    title="Qwen-Image VAE",
    empty=empty,
    config=config,
    signatures=(
        Signature("original", "conv2.weight", beside=("decoder.middle.0.residual.2.weight",), accepts=of_images),
        Signature("diffusers", "post_quant_conv.weight", beside=("decoder.mid_block.resnets.0.norm1.gamma",),
                  accepts=of_images),
    ),
    renames={"original": renamed_original},
)  # fmt: skip
