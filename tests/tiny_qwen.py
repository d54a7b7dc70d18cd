"""Tiny models of Qwen-Image: as a diffusers folder, and as single files in the layouts that they are published in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

Tensors = dict[str, torch.Tensor]
SCHEDULE: dict[str, Any] = {
    "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 8192, "max_shift": 0.9, "shift": 1.0,
    "shift_terminal": 0.02, "use_dynamic_shifting": True,
}  # fmt: skip
"""As in the published folders."""
MARKS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


def encoder(tokenizer: Any, *, width: int, heads: int, mrope: list[int]) -> Qwen2_5_VLForConditionalGeneration:
    """A narrow Qwen2.5-VL with two layers, and one in its vision tower."""
    text = {
        "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": heads, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": mrope},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    ids = dict(zip(("vision_start", "vision_end", "image", "video"), (0, 1, 3, 4), strict=True))
    tokens = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(MARKS[place]) for name, place in ids.items()}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))


def transformer(*, channels: int, heads: int, head: int, text: int) -> QwenImageTransformer2DModel:
    """Two blocks, with random norms: ones would hide a norm that is not loaded."""
    made = QwenImageTransformer2DModel(
        in_channels=4 * channels,
        out_channels=channels,
        num_layers=2,
        attention_head_dim=head,
        num_attention_heads=heads,
        joint_attention_dim=text,
        axes_dims_rope=(head // 8, head * 7 // 16, head * 7 // 16) if head > 16 else (4, 6, 6),
    )
    for name, weight in made.named_parameters():
        if "norm" in name and weight.ndim == 1:
            torch.nn.init.normal_(weight, 1.0, 0.1)
    return made


def write_qwen_image(folder: Path, *, seed: int = 14) -> Path:
    """Write a QwenImagePipeline."""
    from tests.tiny_models import qwen_tokenizer

    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens(list(MARKS), special_tokens=True)
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULE),
        vae=AutoencoderKLQwenImage(
            base_dim=4, z_dim=4, latents_mean=[-0.7, 0.2, 0.4, -0.1], latents_std=[2.8, 1.4, 2.3, 1.2]
        ),
        text_encoder=encoder(tokenizer, width=16, heads=2, mrope=[1, 1, 2]),
        tokenizer=tokenizer,
        transformer=transformer(channels=4, heads=2, head=16, text=16),
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / "neurolux.toml").write_text("[defaults]\nwidth = 128\nheight = 128\n")  # its VAE says no size
    return folder


def tiny_qwen_image(comfyui: Path, *, seed: int = 15) -> QwenImagePipeline:
    """A Qwen-Image with the vocabulary, the widths of heads and the latents of the real one."""
    torch.manual_seed(seed)
    tokenizer = Qwen2Tokenizer.from_pretrained(comfyui / "comfy/text_encoders/qwen25_tokenizer")
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULE),
        vae=AutoencoderKLQwenImage(base_dim=4, z_dim=16),
        text_encoder=encoder(tokenizer, width=128, heads=1, mrope=[16, 24, 24]),
        tokenizer=tokenizer,
        transformer=transformer(channels=16, heads=1, head=32, text=128),
    )


def comfy_encoder(state: Mapping[str, torch.Tensor]) -> Tensors:
    """A Qwen2.5-VL under the names that transformers had before 5, as everyone's files have."""
    return {name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): value
            for name, value in state.items()}  # fmt: skip


STEMS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def llama_encoder(state: Mapping[str, torch.Tensor]) -> Tensors:
    """The language model under llama.cpp's names, as GGUF files have them; vision is in a file of its own."""
    found: Tensors = {}
    for name, value in state.items():
        name = name.removeprefix("model.language_model.")
        if block := re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name):
            found[f"blk.{block[1]}.{STEMS[block[2]]}.{block[3]}"] = value
        elif name in ("embed_tokens.weight", "norm.weight", "lm_head.weight"):
            outside = {"embed_tokens.weight": "token_embd", "norm.weight": "output_norm", "lm_head.weight": "output"}
            found[f"{outside[name]}.weight"] = value
    return found


def wan_vae(state: Mapping[str, torch.Tensor]) -> Tensors:
    """A VAE under Wan's own names."""
    inside = {
        "norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6",
        "conv_shortcut": "shortcut",
    }  # fmt: skip
    found: Tensors = {}
    for name, value in state.items():
        new = re.sub(r"^quant_conv\.", "conv1.", re.sub(r"^post_quant_conv\.", "conv2.", name))
        new = new.replace("conv_in.", "conv1.").replace("norm_out.", "head.0.").replace("conv_out.", "head.2.")
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle.{2 * int(m[1])}", new)
        new = new.replace("mid_block.attentions.0", "middle.1").replace("down_blocks", "downsamples")
        new = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"upsamples.{4 * int(m[1]) + int(m[2])}", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"upsamples.{4 * int(m[1]) + 3}", new)
        if re.search(r"(?:middle|downsamples|upsamples)\.\d+\.", new):
            stem, dot, kind = new.rpartition(".")
            head, _, last = stem.rpartition(".")
            new = f"{head}.{inside.get(last, last)}{dot}{kind}" if ".to_qkv" not in stem else new
        found[new] = value.clone()
    return found
