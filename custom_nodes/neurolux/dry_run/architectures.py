"""The catalog's models at full size: their architectures, without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 1024,
}
UNET: dict[str, Any] = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
T5: dict[str, Any] = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
}


def clip(width: int, layers: int) -> CLIPTextConfig:
    """CLIP's text encoder: OpenAI's L or OpenCLIP's G."""
    return CLIPTextConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, intermediate_size=4 * width,
        projection_dim=width,
    )  # fmt: skip


def shallow_flux() -> FluxTransformer2DModel:
    """FLUX dev with few of its blocks: one step takes the same room, because no block leaves anything behind."""
    return FluxTransformer2DModel(guidance_embeds=True, num_layers=2, num_single_layers=2)


Make = Callable[[], Any]
FLUX: dict[str, Make] = {
    "text_encoder": lambda: CLIPTextModel(clip(768, 12)),
    "text_encoder_2": lambda: T5EncoderModel(T5Config(**T5)),
    "vae": lambda: AutoencoderKL(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **VAE),
}
SDXL: dict[str, Make] = {
    "text_encoder": lambda: CLIPTextModel(clip(768, 12)),
    "text_encoder_2": lambda: CLIPTextModelWithProjection(clip(1280, 32)),
    "unet": lambda: UNet2DConditionModel(**UNET),
    "vae": lambda: AutoencoderKL(latent_channels=4, **VAE),
}
SD15: dict[str, Make] = {
    "text_encoder": lambda: CLIPTextModel(clip(768, 12)),
    "unet": lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
    "vae": lambda: AutoencoderKL(latent_channels=4, **{**VAE, "sample_size": 512}),
}
MODELS: dict[str, dict[str, Make]] = {
    "flux-schnell": {**FLUX, "transformer": lambda: FluxTransformer2DModel(guidance_embeds=False)},
    "flux-dev": {**FLUX, "transformer": lambda: FluxTransformer2DModel(guidance_embeds=True)},
    "flux-krea-dev": {**FLUX, "transformer": lambda: FluxTransformer2DModel(guidance_embeds=True)},
    "flux-fill-dev": {
        **FLUX,
        "transformer": lambda: FluxTransformer2DModel(guidance_embeds=True, in_channels=384, out_channels=64),
    },
    "flux-kontext-dev": {**FLUX, "transformer": lambda: FluxTransformer2DModel(guidance_embeds=True)},
    "sdxl-lightning": SDXL,
    "sdxl-base": SDXL,
    "sdxl-turbo": SDXL,
    "sd15": SD15,
}


def on_meta(make: Make, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The module without memory."""
    with torch.device("meta"):
        return make().to(dtype)
