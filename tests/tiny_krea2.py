"""A tiny model of Krea 2, as a diffusers folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from transformers import Qwen3VLConfig, Qwen3VLModel

SCHEDULE: dict[str, Any] = {
    "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 6400, "max_shift": 1.15, "shift": 1.0,
    "use_dynamic_shifting": True,
}  # fmt: skip
"""As in the published folders."""


def encoder(
    vocabulary: int, *, width: int, layers: int, heads: int, head: int, mrope: Sequence[int], theta: float
) -> Qwen3VLModel:
    """A narrow Qwen3-VL with one layer in its vision tower."""
    text = {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 1, "head_dim": head, "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": theta, "mrope_section": list(mrope), "mrope_interleaved": True,
        },
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision))


def transformer(*, channels: int, heads: int, head: int, text: int, taps: int) -> Krea2Transformer2DModel:
    """Two blocks, with random norms and tables: zeros would hide one that is not loaded."""
    made = Krea2Transformer2DModel(
        in_channels=4 * channels,
        num_layers=2,
        attention_head_dim=head,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        intermediate_size=64,
        timestep_embed_dim=16,
        text_hidden_dim=text,
        num_text_layers=taps,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(head // 4, head * 3 // 8, head * 3 // 8) if head > 8 else (4, 2, 2),
    )
    for name, weight in made.named_parameters():
        if "norm" in name or "table" in name:
            torch.nn.init.normal_(weight, 0.0, 0.2)
    return made


def write_krea2(folder: Path, *, seed: int = 17) -> Path:
    """Write the guided Krea2Pipeline."""
    from tests.tiny_models import qwen_tokenizer

    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    pipeline = Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULE),
        vae=AutoencoderKLQwenImage(
            base_dim=4, z_dim=4, latents_mean=[-0.7, 0.2, 0.4, -0.1], latents_std=[2.8, 1.4, 2.3, 1.2]
        ),
        text_encoder=encoder(len(tokenizer), width=16, layers=2, heads=2, head=8, mrope=(2, 1, 1), theta=1e6),
        tokenizer=tokenizer,
        transformer=transformer(channels=4, heads=4, head=8, text=16, taps=3),
        text_encoder_select_layers=(0, 1, 2),
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / "neurolux.toml").write_text("[defaults]\nwidth = 128\nheight = 128\n")  # its VAE says no size
    return folder
