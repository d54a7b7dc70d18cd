"""Pipelines of full size with random weights: what a benchmark runs on a machine that has downloaded nothing.

The architectures are those of FLUX.1 (schnell, dev) and SDXL; the numbers in them mean nothing, and take as long to
multiply. ``tiny`` makes the same of a size for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

Family = Literal["flux", "sdxl"]
FLUX: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "axes_dims_rope": (16, 56, 56),
}
TINY_FLUX = FLUX | {
    "in_channels": 16, "num_layers": 3, "num_single_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TINY_SDXL = SDXL | {
    "block_out_channels": (16, 32, 32), "transformer_layers_per_block": (1, 1, 2), "attention_head_dim": (2, 4, 4),
    "cross_attention_dim": 64, "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80,
    "norm_num_groups": 8,
}  # fmt: skip
VAE_LEVELS, TINY_VAE_LEVELS = (128, 256, 512, 512), (8, 16, 16, 16)
DEVIATION = 0.02


@dataclass(frozen=True)
class Subject:
    """What is measured: a model, as it is used."""

    name: str
    family: Family
    guidance: bool
    steps: int
    side: int = 1024


SUBJECTS = (
    Subject("flux-schnell", "flux", False, 4),
    Subject("flux-dev", "flux", True, 28),
    Subject("sdxl-lightning", "sdxl", False, 4),
)


def components(subject: Subject, device: torch.device, dtype: torch.dtype, *, tiny: bool) -> dict[str, Any]:
    """The modules of a pipeline, in RAM; each is filled on ``device``."""
    import transformers
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel

    flux = subject.family == "flux"
    width, wide = (32, 32) if tiny else (768, 1280)
    layers = 2 if tiny else None

    def clip(hidden: int, depth: int, projection: int) -> Any:
        return transformers.CLIPTextConfig(
            hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers or depth,
            num_attention_heads=max(1, hidden // 64), projection_dim=projection,
        )  # fmt: skip

    with init_empty_weights():
        parts: dict[str, Any] = {"text_encoder": transformers.CLIPTextModel(clip(width, 12, width))}
        if flux:
            t5 = transformers.T5Config(
                d_model=32 if tiny else 4096, d_ff=64 if tiny else 10240, d_kv=8 if tiny else 64,
                num_heads=4 if tiny else 64, num_layers=4 if tiny else 24, feed_forward_proj="gated-gelu",
            )  # fmt: skip
            parts["text_encoder_2"] = transformers.T5EncoderModel(t5)
            config = TINY_FLUX if tiny else FLUX
            parts["transformer"] = FluxTransformer2DModel(**config, guidance_embeds=subject.guidance)
        else:
            parts["text_encoder_2"] = transformers.CLIPTextModelWithProjection(clip(wide, 32, wide))
            parts["unet"] = UNet2DConditionModel(**(TINY_SDXL if tiny else SDXL))
        levels = TINY_VAE_LEVELS if tiny else VAE_LEVELS
        parts["vae"] = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(levels),
            up_block_types=("UpDecoderBlock2D",) * len(levels),
            block_out_channels=levels, layers_per_block=2, sample_size=1024, norm_num_groups=min(32, levels[0]),
            latent_channels=(4 if tiny else 16) if flux else 4,
            scaling_factor=0.3611 if flux else 0.13025, shift_factor=0.1159 if flux else None,
            use_quant_conv=not flux, use_post_quant_conv=not flux, force_upcast=False,
        )  # fmt: skip
    return {name: filled(part, device, dtype) for name, part in parts.items()}


def filled(module: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """``module``, made without memory, with small random weights in RAM, generated on ``device``, which is quick."""
    generator = torch.Generator(device).manual_seed(0)
    made: dict[int, torch.nn.Parameter] = {}
    for part in module.modules():
        for name, weight in list(part._parameters.items()):
            if weight is None:
                continue
            if id(weight) not in made:
                value = torch.empty(weight.shape, dtype=dtype, device=device).normal_(0, DEVIATION, generator=generator)
                made[id(weight)] = torch.nn.Parameter(value.cpu(), requires_grad=False)
            part._parameters[name] = made[id(weight)]
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and buffer.is_meta:  # CLIP's positions: 0, 1, 2, ...
                part._buffers[name] = torch.arange(buffer.numel(), dtype=buffer.dtype).view(buffer.shape)
    return module.eval()


def pipeline(subject: Subject, parts: dict[str, Any], device: torch.device) -> Any:
    """The pack's pipeline over ``parts``, with the tokenizers that ComfyUI brings."""
    import diffusers
    from neurolux.families.parts.placed import placed_class
    from neurolux.families.registry import family_of

    family = family_of(subject.family)
    assert family.tokenizers is not None
    assert family.scheduler is not None
    chosen = family.scheduler({family.denoiser: {"guidance_embeds": subject.guidance}})
    trailing = {} if subject.guidance or subject.family == "flux" else {"timestep_spacing": "trailing"}
    scheduler = getattr(diffusers, chosen.class_name)(**{**chosen.config, **trailing})
    options = family.pipeline_options({})
    made: Any = placed_class(family.pipelines["text-to-image", None])(
        **parts, **family.tokenizers(512), scheduler=scheduler, **options
    )
    made.set_progress_bar_config(disable=True)
    made.placement_device = device
    return made
