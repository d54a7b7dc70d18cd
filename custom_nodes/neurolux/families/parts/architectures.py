"""Parts of published models at their full size, without weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
)

from ..spec import Make
from . import qwen3_vl, qwen25_vl, wan_vae

VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 1024,
}


def clip_l() -> CLIPTextModel:
    """OpenAI's CLIP L."""
    return CLIPTextModel(_clip(768, 12))


def clip_g() -> CLIPTextModelWithProjection:
    """OpenCLIP's G."""
    return CLIPTextModelWithProjection(_clip(1280, 32))


def flux_vae() -> AutoencoderKL:
    """FLUX.1's VAE."""
    return AutoencoderKL(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **VAE)


def t5_xxl() -> T5EncoderModel:
    """The encoder of T5 v1.1 XXL."""
    return T5EncoderModel(
        T5Config(
            d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, feed_forward_proj="gated-gelu",
            vocab_size=32128,
        )
    )  # fmt: skip


def qwen3_4b() -> Qwen3Model:
    """Qwen3 4B without its head, which shares the embedding's weights."""
    return Qwen3Model(
        Qwen3Config(
            vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128,
        )
    )  # fmt: skip


def qwen3_8b() -> Qwen3Model:
    """Qwen3 8B without its head."""
    return Qwen3Model(
        Qwen3Config(
            vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128,
        )
    )  # fmt: skip


def qwen25_vl_7b() -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL 7B without its vision tower and its head."""
    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": qwen25_vl.MROPE_SECTION},
    }  # fmt: skip
    return qwen25_vl.text_only(Qwen2_5_VLConfig(text_config=text))


def qwen3_vl_4b() -> Qwen3VLModel:
    """Qwen3-VL 4B without its vision tower and its head."""
    text = {
        "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5e6, "mrope_section": qwen3_vl.MROPE_SECTION,
            "mrope_interleaved": True,
        },
    }  # fmt: skip
    return qwen3_vl.text_only(Qwen3VLConfig(text_config=text))


def qwen_image_vae() -> AutoencoderKLQwenImage:
    """Qwen-Image's VAE."""
    return wan_vae.empty({}, None)


def _clip(width: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, intermediate_size=4 * width,
        projection_dim=width,
    )  # fmt: skip


def on_meta(make: Make, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The module without memory."""
    with torch.device("meta"):
        return make().to(dtype)
