"""Tiny models of Krea 2: as a diffusers folder, and as single files in the layouts that they are published in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLModel

Tensors = dict[str, torch.Tensor]
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


def tiny_krea2(comfyui: Path, *, seed: int = 18) -> Krea2Pipeline:
    """The guided Krea 2 with the vocabulary, the layers of text and the latents of the real one."""
    torch.manual_seed(seed)
    tokenizer = Qwen2Tokenizer.from_pretrained(comfyui / "comfy/text_encoders/qwen25_tokenizer")
    return Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULE),
        vae=AutoencoderKLQwenImage(base_dim=4, z_dim=16),
        text_encoder=encoder(len(tokenizer), width=32, layers=36, heads=1, head=128, mrope=(24, 20, 20), theta=5e6),
        tokenizer=tokenizer,
        transformer=transformer(channels=16, heads=2, head=32, text=32, taps=12),
    )


def comfy_encoder(state: Mapping[str, torch.Tensor]) -> Tensors:
    """A Qwen3-VL under the names of ComfyUI's files."""
    return {name.replace("language_model.", "model."): value for name, value in state.items()}


def llama_encoder(state: Mapping[str, torch.Tensor]) -> Tensors:
    """The language model under llama.cpp's names, as GGUF files have them; vision is in a file of its own."""
    from tests.tiny_files import llama_qwen3

    prefix = "language_model."
    return llama_qwen3({name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})


OUTSIDE = {
    "img_in.": "first.", "time_embed.linear_1.": "tmlp.0.", "time_embed.linear_2.": "tmlp.2.",
    "time_mod_proj.": "tproj.1.", "txt_in.norm.weight": "txtmlp.0.scale", "txt_in.linear_1.": "txtmlp.1.",
    "txt_in.linear_2.": "txtmlp.3.", "text_fusion.": "txtfusion.", "transformer_blocks.": "blocks.",
    "final_layer.linear.": "last.linear.", "final_layer.norm.weight": "last.norm.scale",
    "final_layer.scale_shift_table": "last.modulation.lin",
}  # fmt: skip
INSIDE = {
    ".attn.to_out.0.": ".attn.wo.", ".attn.to_gate.": ".attn.gate.", ".attn.norm_q.weight": ".attn.qknorm.qnorm.scale",
    ".attn.norm_k.weight": ".attn.qknorm.knorm.scale", ".ff.": ".mlp.", ".norm1.weight": ".prenorm.scale",
    ".norm2.weight": ".postnorm.scale",
}  # fmt: skip


def original_name(name: str) -> str:
    """The authors' name of a tensor, or of a layer with a dot at its end."""
    start = next((start for start in OUTSIDE if name.startswith(start)), "")
    name = OUTSIDE.get(start, "") + name.removeprefix(start)
    for ours, theirs in INSIDE.items():
        name = name.replace(ours, theirs)
    return re.sub(r"\.attn\.to_([qkv])\.", r".attn.w\1.", name)


def original_krea2(state: Mapping[str, torch.Tensor]) -> Tensors:
    """A transformer under its authors' names. They have the six modulations of a block in one row."""
    found: Tensors = {}
    for name, value in state.items():
        if name.startswith("transformer_blocks.") and name.endswith(".scale_shift_table"):
            found[original_name(name).replace(".scale_shift_table", ".mod.lin")] = value.flatten()
        else:
            found[original_name(name)] = value.clone()
    return found
