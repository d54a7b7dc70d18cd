"""Configurations of the models in single files, told from the shapes of their tensors.

A single file has no config.json. What its shapes do not say (heads of 64, groups of 32, rotary axes) is the same for
every model of the family, so pruned and widened variants load as well, and no network is asked for a configuration.
Shapes are those of the diffusers and transformers names (key_maps.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..weights.file_kinds import Part

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
CLIP_HEAD, UNET_HEAD = 64, 64
TIME_IDS_WIDTH = 256
"""SDXL embeds each of its six size and crop numbers in so many values."""
FLUX_LATENT_CHANNELS = 16
VAE_SCALES: dict[str, dict[str, float | None]] = {
    "flux": {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    "sdxl": {"scaling_factor": 0.13025, "shift_factor": None},
    "sd15": {"scaling_factor": 0.18215, "shift_factor": None},
}
FLUX_SCHEDULES: dict[bool, dict[str, Any]] = {
    True: {"shift": 3.0, "use_dynamic_shifting": True},
    False: {"shift": 1.0, "use_dynamic_shifting": False},
}
"""FlowMatchEulerDiscreteScheduler, with guidance embeddings (dev) and without (schnell)."""
SDXL_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
"""EulerDiscreteScheduler."""


def config_of(part: Part, shapes: Shapes, family: str, *, projected: bool = False) -> dict[str, Any]:
    """The configuration of ``part``; ``projected`` for a CLIP encoder that ends in a projection.

    Raises KeyError or IndexError where a tensor that the architecture has is missing.
    """
    if part == "flux-transformer":
        return flux_transformer(shapes)
    if part == "sdxl-unet":
        return sdxl_unet(shapes)
    if part == "vae":
        return vae(shapes, family)
    if part == "t5":
        return t5(shapes)
    return clip(shapes, projected=projected)


def numbered(shapes: Shapes, pattern: str) -> int:
    """How many different numbers ``pattern`` (with one group) finds in the names."""
    found = (re.match(pattern, name) for name in shapes)
    return len({match[1] for match in found if match})


def flux_transformer(shapes: Shapes) -> dict[str, Any]:
    """FluxTransformer2DModel. The rotary axes are an eighth of a head for the image's index, the rest for its sides."""
    width = shapes["x_embedder.weight"][0]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    axis = head // 8
    return {
        "patch_size": 1,
        "in_channels": shapes["x_embedder.weight"][1],
        "out_channels": shapes["proj_out.weight"][0],
        "num_layers": numbered(shapes, r"transformer_blocks\.(\d+)\."),
        "num_single_layers": numbered(shapes, r"single_transformer_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
        "axes_dims_rope": (axis, (head - axis) // 2, (head - axis) // 2),
    }


def sdxl_unet(shapes: Shapes) -> dict[str, Any]:
    """UNet2DConditionModel."""
    levels = numbered(shapes, r"down_blocks\.(\d+)\.")
    channels = [shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)]
    depths = [
        numbered(shapes, rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks\.(\d+)\.")
        for level in range(levels)
    ]
    crossed = next(name for name in shapes if name.endswith("attn2.to_k.weight"))
    linear = next(name for name in shapes if name.endswith("attentions.0.proj_in.weight"))
    return {
        "sample_size": 128,
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "block_out_channels": channels,
        "layers_per_block": numbered(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
        "transformer_layers_per_block": [max(depth, 1) for depth in depths],
        "attention_head_dim": [width // UNET_HEAD for width in channels],
        "cross_attention_dim": shapes[crossed][1],
        "use_linear_projection": len(shapes[linear]) == 2,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_IDS_WIDTH,
        "projection_class_embeddings_input_dim": shapes["add_embedding.linear_1.weight"][1],
    }


def vae(shapes: Shapes, family: str) -> dict[str, Any]:
    """AutoencoderKL."""
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
        **VAE_SCALES[family],
    }


def t5(shapes: Shapes) -> dict[str, Any]:
    """T5EncoderModel, version 1.1 (gated GELU)."""
    first = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = shapes[f"{first}.relative_attention_bias.weight"]
    vocabulary, width = shapes["shared.weight"]
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes[f"{first}.q.weight"][0] // heads,
        "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        "num_layers": numbered(shapes, r"encoder\.block\.(\d+)\."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }


def clip(shapes: Shapes, *, projected: bool) -> dict[str, Any]:
    """CLIPTextModel, or with ``projected`` CLIPTextModelWithProjection (OpenCLIP's G, which has the exact GELU)."""
    own = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    width = own["encoder.layers.0.self_attn.q_proj.weight"][0]
    vocabulary = own["embeddings.token_embedding.weight"][0]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": own["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": numbered(own, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(width // CLIP_HEAD, 1),
        "max_position_embeddings": own["embeddings.position_embedding.weight"][0],
        "projection_dim": own.get("text_projection.weight", (width,))[0],
        "hidden_act": "gelu" if projected else "quick_gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
