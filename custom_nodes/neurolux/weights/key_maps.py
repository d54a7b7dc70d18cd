"""Names of weights in single files into those of diffusers and transformers. Views where possible: nothing is copied.

The same functions run on tensors that have a shape and no data, so that a file can be measured without reading it.
UNets, VAEs and OpenCLIP are renamed by diffusers' own functions. FLUX is not: diffusers' function is written for a
width of 3072 and copies every weight before the first can be used, 24 GB of them.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from .file_kinds import Part, Place

Tensors = dict[str, torch.Tensor]

FLUX_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
FLUX_DOUBLE = {
    "img_mod.lin": ["norm1.linear"],
    "txt_mod.lin": ["norm1_context.linear"],
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "img_attn.norm.query_norm": ["attn.norm_q"],
    "img_attn.norm.key_norm": ["attn.norm_k"],
    "txt_attn.norm.query_norm": ["attn.norm_added_q"],
    "txt_attn.norm.key_norm": ["attn.norm_added_k"],
    "img_attn.proj": ["attn.to_out.0"],
    "txt_attn.proj": ["attn.to_add_out"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
}
FLUX_SINGLE = {
    "modulation.lin": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
    "norm.query_norm": ["attn.norm_q"],
    "norm.key_norm": ["attn.norm_k"],
}
T5_OUTSIDE = {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm"}
T5_LAYERS = {
    "attn_norm": "layer.0.layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}
"""llama.cpp's names (gguf's tensor_mapping.py, architecture t5encoder)."""
T5_BLOCK = re.compile(r"enc\.blk\.(\d+)\.(\w+)")
FLUX_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")
SCALES = ("scale_weight", "weight_scale")
"""Beside a scaled fp8 weight: what it is multiplied with. The second name is that of ComfyUI's later files."""
NOT_WEIGHTS = ("scale_input", "input_scale", "scaled_fp8", "comfy_quant", "position_ids", "logit_scale")


def renamed(part: Part, place: Place, tensors: Tensors) -> Tensors:
    """The tensors of ``part`` under the names that its class in diffusers or transformers has for them."""
    own = {name.removeprefix(place.prefix): value for name, value in tensors.items() if name.startswith(place.prefix)}
    own = {with_scale_name(name): value for name, value in own.items() if not name.endswith(NOT_WEIGHTS)}
    if part == "flux-transformer" and place.layout == "original":
        return renamed_flux(own)
    if part == "sdxl-unet" and place.layout == "original":
        return renamed_unet(own)
    if part == "vae" and place.layout == "original":
        return renamed_vae(own)
    if part == "t5" and place.layout == "llama.cpp":
        return renamed_t5(own)
    if part == "clip-g" and place.layout == "original":
        return renamed_open_clip(own)
    return own


def with_scale_name(name: str) -> str:
    """``name``, with one spelling for the scale of a weight."""
    stem, _, last = name.rpartition(".")
    return f"{stem}.{SCALES[0]}" if last in SCALES else name


def renamed_flux(tensors: Tensors) -> Tensors:
    """FLUX: fused projections become their parts, which are views of them."""
    width = tensors["img_in.weight"].shape[0]
    found: Tensors = {}
    for name, value in tensors.items():
        stem, _, kind = name.rpartition(".")
        block = FLUX_BLOCK.fullmatch(stem)
        if block is None:
            target = FLUX_OUTSIDE.get(stem)
            if target == "norm_out.linear" and value.numel() > 1:
                value = torch.cat(list(reversed(value.chunk(2, dim=0))), dim=0)  # diffusers has scale before shift
            if target is not None:
                found[f"{target}.{kind}"] = value
            continue
        double, number, layer = block[1] == "double", block[2], block[3]
        targets = (FLUX_DOUBLE if double else FLUX_SINGLE).get(layer)
        if targets is None:
            continue
        group = "transformer_blocks" if double else "single_transformer_blocks"
        kind = "weight" if kind == "scale" else kind
        for target, piece in zip(targets, pieces(value, len(targets), width), strict=True):
            found[f"{group}.{number}.{target}.{kind}"] = piece
    return found


def pieces(value: torch.Tensor, count: int, width: int) -> list[torch.Tensor]:
    """A fused projection's rows: three of ``width`` each, and what is left; a scale belongs to all of them."""
    if count == 1:
        return [value]
    if value.numel() == 1:
        return [value] * count
    sizes = [width] * 3
    return list(value.split(sizes if count == 3 else [*sizes, value.shape[0] - 3 * width], dim=0))


def renamed_t5(tensors: Tensors) -> Tensors:
    """T5's encoder out of a GGUF; names of a decoder, or of llama.cpp's own, are left out."""
    found: Tensors = {}
    for name, value in tensors.items():
        stem, _, kind = name.rpartition(".")
        block = T5_BLOCK.fullmatch(stem)
        target = T5_OUTSIDE.get(stem) if block is None else T5_LAYERS.get(block[2])
        if target is not None:
            found[f"{target if block is None else f'encoder.block.{block[1]}.{target}'}.{kind}"] = value
    return found


def renamed_unet(tensors: Tensors) -> Tensors:
    """SDXL's UNet, by diffusers."""
    from diffusers.loaders.single_file_utils import LDM_UNET_KEY, convert_ldm_unet_checkpoint

    blocks = {name.split(".")[1] for name in tensors if name.startswith("input_blocks.")}
    levels = 1 + sum(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name) is not None for name in tensors)
    config = {"layers_per_block": len(blocks) // levels - 1, "addition_embed_type": "text_time"}
    return convert_ldm_unet_checkpoint({LDM_UNET_KEY + name: value for name, value in tensors.items()}, config)


def renamed_vae(tensors: Tensors) -> Tensors:
    """A VAE in the layout of LDM and BFL, by diffusers."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    levels = {name.split(".")[2] for name in tensors if name.startswith("encoder.down.")}
    return convert_ldm_vae_checkpoint(tensors, {"down_block_types": levels, "up_block_types": levels})


def renamed_open_clip(tensors: Tensors) -> Tensors:
    """SDXL's second text encoder, by diffusers."""
    from types import SimpleNamespace

    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    width = tensors["ln_final.weight"].shape[0]
    text_model: Any = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    return convert_open_clip_checkpoint(text_model, tensors, prefix="")
