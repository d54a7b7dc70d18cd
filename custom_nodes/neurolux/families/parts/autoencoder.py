"""AutoencoderKL, the VAE of FLUX and Stable Diffusion, and the scaling of its latents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...weights.file_kinds import TensorInfo
from ...weights.stamps import Shapes
from ..spec import Config, Part, Signature, Tensors
from .shapes import numbered

if TYPE_CHECKING:
    import torch


FLUX_LATENTS: Config = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
"""The scaling of the latents of FLUX.1's VAE, which other families use too."""
FLUX_VAE_FILES = ("ae.*", "flux*vae*")
WAN_NORM = "norm1.gamma"
"""The end of a name that only Wan's VAEs and those made from them have."""
SD3_VAE_FILES = ("*sd3*", "*sd_3*", "*stable*diffusion*3*")
"""Its shapes are the same as those of FLUX.1's VAE, and its latents have another scale."""

ORIGINAL_MARK, DIFFUSERS_MARK = "decoder.mid.block_1.conv1.weight", "decoder.mid_block.resnets.0.conv1.weight"
STATISTICS = "bn.running_mean"
"""Of FLUX.2's VAE, which has the other tensors as well."""


def config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of AutoencoderKL, without the scaling of latents, which depends on the family."""
    levels = numbered(shapes, r"encoder\.down_blocks\.(\d+)\.")
    return {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [
            shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)
        ],
        "layers_per_block": numbered(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "sample_size": 1024,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "force_upcast": True,
    }


def empty(config: Config, folder: Path | None) -> Any:
    """The VAE without weights."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(AutoencoderKL.load_config(folder) if folder else config)


def renamed_original(tensors: Tensors) -> Tensors:
    """Rename tensors in the layout of LDM and BFL, with diffusers' converter."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    levels = {name.split(".")[2] for name in tensors if name.startswith("encoder.down.")}
    return convert_ldm_vae_checkpoint(tensors, {"down_block_types": levels, "up_block_types": levels})


def scaled_to_raw(config: Config, latents: torch.Tensor) -> torch.Tensor:
    """Convert the denoiser's latents to the VAE's space: by a factor, and by channel statistics if there are any.

    The arithmetic is that of the last lines of pipeline_stable_diffusion_xl.py.
    """
    spread = statistics(config, latents)
    if spread is not None:
        mean, std = spread
        return latents * std / config["scaling_factor"] + mean
    return latents / config["scaling_factor"]


def scaled_from_raw(config: Config, samples: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`scaled_to_raw`."""
    spread = statistics(config, samples)
    if spread is not None:
        mean, std = spread
        return (samples - mean) * config["scaling_factor"] / std
    return samples * config["scaling_factor"]


def shifted_to_raw(config: Config, latents: torch.Tensor) -> torch.Tensor:
    """The same for FLUX.1's VAE, which has a shift as well, like the last lines of pipeline_flux.py."""
    return (latents / config["scaling_factor"]) + config["shift_factor"]


def shifted_from_raw(config: Config, samples: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`shifted_to_raw`."""
    return (samples - config["shift_factor"]) * config["scaling_factor"]


def statistics(config: Config, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and standard deviation of each channel, (1, C, 1, 1); None if the configuration has none."""
    import torch

    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return None
    shape = (1, len(mean), 1, 1)
    return tuple(torch.tensor(values).view(shape).to(like.device, like.dtype) for values in (mean, std))  # pyright: ignore[reportReturnType]


def for_images(info: TensorInfo, prefix: str) -> bool:
    """Whether a convolution is one of images: those of video models (Wan, Qwen-Image) have another dimension."""
    return len(info.shape) == 4


VAE = Part(
    name="vae",
    title="VAE",
    empty=empty,
    config=config,
    signatures=(
        Signature("original", ORIGINAL_MARK, without=(STATISTICS,), accepts=for_images),
        Signature("diffusers", DIFFUSERS_MARK, without=(STATISTICS, "norm1.gamma"), accepts=for_images),
    ),
    renames={"original": renamed_original},
)
