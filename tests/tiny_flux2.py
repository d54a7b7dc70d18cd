"""A tiny FLUX.2 klein, and its parts under the names of published single files (see tiny_files.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from tests.tiny_files import Tensors, ldm_vae
from tests.tiny_models import tiny_flux2_vae

WIDTH = 32
TEMPLATE = (
    "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}"
)
"""What Qwen3's chat template makes of messages before an answer without thoughts."""
OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
BLOCK = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_q": "img_attn.qkv",
    "attn.add_q_proj": "txt_attn.qkv",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
SINGLE_BLOCK = {
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}
FUSED = {"attn.to_q": ("attn.to_k", "attn.to_v"), "attn.add_q_proj": ("attn.add_k_proj", "attn.add_v_proj")}


def tiny_klein(comfyui: Path, *, seed: int = 16) -> Flux2KleinPipeline:
    """A klein with the vocabulary, the heads and the latents of the real one."""
    torch.manual_seed(seed)
    tokenizer = Qwen2Tokenizer.from_pretrained(comfyui / "comfy/text_encoders/qwen25_tokenizer")
    tokenizer.chat_template = TEMPLATE
    encoder = Qwen3Config(
        vocab_size=151936, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=28, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
    )  # fmt: skip
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_flux2_vae(32, channels=(32, 32, 64, 64), groups=32, sample_size=1024),
        text_encoder=Qwen3ForCausalLM(encoder),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            num_layers=1, num_single_layers=2, num_attention_heads=1, joint_attention_dim=3 * WIDTH,
            guidance_embeds=False,
        ),
    )  # fmt: skip


def whole_state(vae: AutoencoderKLFlux2) -> Tensors:
    """The weights, and the statistics of the latents."""
    return {name: value.detach() for name, value in vae.state_dict().items()}


def bfl_klein(state: Mapping[str, torch.Tensor]) -> Tensors:
    """A transformer under Black Forest Labs' names."""
    found: Tensors = {}
    for name, value in state.items():
        stem, _, kind = name.rpartition(".")
        block = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", stem)
        if block is None:
            if stem == "norm_out.linear":
                value = torch.cat(list(reversed(value.chunk(2))))
            found[f"{OUTSIDE[stem]}.{kind}"] = value.clone()
            continue
        layer = (SINGLE_BLOCK if block[1] else BLOCK).get(block[3])
        if layer is None:  # joined to another
            continue
        others = () if block[1] else FUSED.get(block[3], ())
        start = stem.removesuffix(block[3])
        value = torch.cat([value, *(state[f"{start}{other}.{kind}"] for other in others)])
        groups = "single_blocks" if block[1] else "double_blocks"
        found[f"{groups}.{block[2]}.{layer}.{'scale' if layer.endswith('_norm') else kind}"] = value.clone()
    return found


def bfl_vae(state: Mapping[str, torch.Tensor]) -> Tensors:
    """The VAE under Black Forest Labs' names."""
    moved = {"quant_conv.": "encoder.quant_conv.", "post_quant_conv.": "decoder.post_quant_conv."}
    found: Tensors = {}
    for name, value in ldm_vae(state).items():
        old = next((old for old in moved if name.startswith(old)), "")
        found[moved.get(old, "") + name.removeprefix(old)] = value
    return found
