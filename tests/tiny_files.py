"""Tiny models as single files, in the layouts that models are published in: BFL, LDM, OpenCLIP, scaled fp8, GGUF.

The real classes again, as in tiny_models.py, but with the heads, groups and tokenizers of the real models: a single
file has no configuration, so these must be what they are everywhere. The mappings of names are written here anew, from
diffusers' names to the originals'.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.tiny_models import flux_scheduler, sdxl_scheduler, tiny_vae

WIDTH = 64
QWEN3_TEMPLATE = (
    "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
"""What Qwen3's chat template makes of messages before an answer with thoughts."""
Tensors = dict[str, torch.Tensor]


def clip(projected: bool) -> Any:
    """One of SDXL's CLIP encoders, narrow."""
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=WIDTH,
        intermediate_size=96,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=1,
        hidden_act="gelu" if projected else "quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def vae(latent_channels: int) -> AutoencoderKL:
    """A VAE with groups of 32."""
    flux = latent_channels == 16
    scaling, shift = (0.3611, 0.1159) if flux else (0.13025, None)
    channels = (32, 32, 64, 64)
    made = tiny_vae(latent_channels, scaling=scaling, shift=shift, sample_size=1024, channels=channels, groups=32)
    made.register_to_config(force_upcast=True)  # as files without a configuration are read
    return made


def t5() -> T5EncoderModel:
    """A narrow T5 with the vocabulary of the real one."""
    return T5EncoderModel(
        T5Config(
            vocab_size=32128,
            d_model=WIDTH,
            d_kv=32,
            d_ff=96,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


def tiny_flux(comfyui: Path, *, guidance: bool, seed: int = 5) -> FluxPipeline:
    """A FLUX of a few million values, most of them in embeddings."""
    torch.manual_seed(seed)
    return FluxPipeline(
        scheduler=flux_scheduler(guidance_embeds=guidance),
        vae=vae(16),
        text_encoder=clip(False),
        tokenizer=CLIPTokenizer.from_pretrained(comfyui / "comfy/sd1_tokenizer", model_max_length=77),
        text_encoder_2=t5(),
        tokenizer_2=T5Tokenizer.from_pretrained(comfyui / "comfy/text_encoders/t5_tokenizer", model_max_length=512),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=128,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guidance,
        ),
    )


def tiny_chroma(comfyui: Path, *, seed: int = 9) -> ChromaPipeline:
    """A Chroma of a few million values, most of them in embeddings."""
    torch.manual_seed(seed)
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False),
        vae=vae(16),
        text_encoder=t5(),
        tokenizer=T5Tokenizer.from_pretrained(comfyui / "comfy/text_encoders/t5_tokenizer", model_max_length=512),
        transformer=ChromaTransformer2DModel(
            in_channels=64,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=128,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            approximator_num_channels=16,
            approximator_hidden_dim=96,
            approximator_layers=2,
        ),
    )


def tiny_z_image(comfyui: Path, *, seed: int = 10) -> ZImagePipeline:
    """A Z-Image with the vocabulary and the proportions of the real one, under diffusers' defaults."""
    torch.manual_seed(seed)
    tokenizer = Qwen2Tokenizer.from_pretrained(comfyui / "comfy/text_encoders/qwen25_tokenizer")
    tokenizer.chat_template = QWEN3_TEMPLATE
    transformer = ZImageTransformer2DModel(
        dim=256, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH, axes_lens=[1536, 512, 512]
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False),
        vae=vae(16),
        text_encoder=Qwen3Model(
            Qwen3Config(
                vocab_size=151936, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, head_dim=32, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            )
        ),
        tokenizer=tokenizer,
        transformer=transformer,
    )  # fmt: skip


def tiny_sdxl(comfyui: Path, *, lightning: bool, seed: int = 6) -> StableDiffusionXLPipeline:
    """An SDXL with two levels."""
    torch.manual_seed(seed)
    tokenizer = comfyui / "comfy/sd1_tokenizer"
    return StableDiffusionXLPipeline(
        vae=vae(4),
        text_encoder=clip(False),
        text_encoder_2=clip(True),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer, model_max_length=77),
        tokenizer_2=CLIPTokenizer.from_pretrained(tokenizer, model_max_length=77, pad_token="!"),
        unet=UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(64, 128),
            layers_per_block=2,
            attention_head_dim=(1, 2),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=6 * 256 + WIDTH,
            cross_attention_dim=2 * WIDTH,
        ),
        scheduler=sdxl_scheduler(lightning=lightning),
        add_watermarker=False,
    )


def tiny_sd15(comfyui: Path, *, seed: int = 8) -> StableDiffusionPipeline:
    """A Stable Diffusion 1.5 with two levels, of which the first attends to the text, and 8 heads."""
    torch.manual_seed(seed)
    return StableDiffusionPipeline(
        vae=with_scaling(vae(4), 0.18215),
        text_encoder=clip(False),
        tokenizer=CLIPTokenizer.from_pretrained(comfyui / "comfy/sd1_tokenizer", model_max_length=77),
        unet=UNet2DConditionModel(
            sample_size=64,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(64, 128),
            layers_per_block=2,
            attention_head_dim=8,
            cross_attention_dim=WIDTH,
        ),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            set_alpha_to_one=False,
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


def with_scaling(made: AutoencoderKL, scaling: float) -> AutoencoderKL:
    """The VAE with another scaling factor."""
    made.register_to_config(scaling_factor=scaling)
    return made


FLUX_STEMS = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
}
DOUBLE_STEMS = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
DOUBLE_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}


def bfl_flux(state: Mapping[str, torch.Tensor]) -> Tensors:
    """A FLUX transformer under Black Forest Labs' names."""
    found: Tensors = {}
    for kind in ("weight", "bias"):
        for ours, theirs in FLUX_STEMS.items():
            if f"{ours}.{kind}" in state:
                found[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
        if f"norm_out.linear.{kind}" in state:
            scale, shift = state[f"norm_out.linear.{kind}"].chunk(2)
            found[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
        for number in range(sum(f"transformer_blocks.{n}.attn.to_q.weight" in state for n in range(99))):
            ours, theirs = f"transformer_blocks.{number}.", f"double_blocks.{number}."
            for stem, target in DOUBLE_STEMS.items():
                if f"{ours}{stem}.{kind}" in state:
                    found[f"{theirs}{target}.{kind}"] = state[f"{ours}{stem}.{kind}"]
            for stream, names in (
                ("img", ("to_q", "to_k", "to_v")),
                ("txt", ("add_q_proj", "add_k_proj", "add_v_proj")),
            ):
                parts = [state[f"{ours}attn.{name}.{kind}"] for name in names]
                found[f"{theirs}{stream}_attn.qkv.{kind}"] = torch.cat(parts)
            if kind == "weight":
                for stem, target in DOUBLE_NORMS.items():
                    found[f"{theirs}{target}.scale"] = state[f"{ours}{stem}.weight"]
        for number in range(sum(f"single_transformer_blocks.{n}.attn.to_q.weight" in state for n in range(99))):
            ours, theirs = f"single_transformer_blocks.{number}.", f"single_blocks.{number}."
            if f"{ours}norm.linear.{kind}" in state:
                found[f"{theirs}modulation.lin.{kind}"] = state[f"{ours}norm.linear.{kind}"]
            found[f"{theirs}linear2.{kind}"] = state[f"{ours}proj_out.{kind}"]
            parts = [state[f"{ours}{name}.{kind}"] for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
            found[f"{theirs}linear1.{kind}"] = torch.cat(parts)
            if kind == "weight":
                found[f"{theirs}norm.query_norm.scale"] = state[f"{ours}attn.norm_q.weight"]
                found[f"{theirs}norm.key_norm.scale"] = state[f"{ours}attn.norm_k.weight"]
    return {name: value.clone() for name, value in found.items()}


def original_chroma(state: Mapping[str, torch.Tensor]) -> Tensors:
    """A Chroma transformer under its authors' names."""
    found = bfl_flux(state)
    for name, value in state.items():
        if name.startswith("distilled_guidance_layer."):
            new = name.replace("linear_1", "in_layer").replace("linear_2", "out_layer")
            found[re.sub(r"(norms\.\d+)\.weight", r"\1.scale", new)] = value.clone()
    return found


def original_z_image(state: Mapping[str, torch.Tensor]) -> Tensors:
    """A Z-Image transformer under its authors' names, with fused projections and tokens of one axis."""
    found: Tensors = {}
    for name, value in state.items():
        if ".to_q." in name:
            parts = [state[name.replace("to_q", other)] for other in ("to_q", "to_k", "to_v")]
            name, value = name.replace("to_q", "qkv"), torch.cat(parts)
        elif ".to_k." in name or ".to_v." in name:
            continue
        for new, old in (("attention.out.", "attention.to_out.0."), ("q_norm", "norm_q"), ("k_norm", "norm_k")):
            name = name.replace(old, new)
        name = re.sub(r"^all_(x_embedder|final_layer)\.2-1\.", r"\1.", name)
        found[name] = value.flatten().clone() if name.endswith("pad_token") else value.clone()
    return found


def ldm_vae(state: Mapping[str, torch.Tensor]) -> Tensors:
    """A VAE under LDM's names; its attention has 1x1 convolutions."""
    found: Tensors = {}
    for name, value in state.items():
        new = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        new = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if "mid_block.attentions.0" in new:
            new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("to_out.0", "proj_out")
            new = new.replace("group_norm", "norm").replace("to_", "")
            value = value[:, :, None, None] if value.dim() == 2 else value
        found[new] = value.clone()
    return found


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def ldm_unet(state: Mapping[str, torch.Tensor], layers: int = 2) -> Tensors:
    """An SDXL UNet under the names of Stability's own code; ``layers`` resnets in each level on the way down."""
    found: Tensors = {}
    for name, value in state.items():
        stem, _, kind = name.rpartition(".")
        if stem in UNET_OUTSIDE:
            new = UNET_OUTSIDE[stem]
        elif stem.startswith("mid_block"):
            _, group, number, rest = stem.split(".", 3)
            new = f"middle_block.{2 * int(number) if group == 'resnets' else 1}.{RESNET.get(rest, rest)}"
        else:
            direction, level, group, number, rest = stem.split(".", 4)
            level, number = int(level), int(number)
            down = direction == "down_blocks"
            first = 1 + level * (layers + 1) if down else level * (layers + 1)
            side = "input_blocks" if down else "output_blocks"
            if group == "downsamplers":
                new = f"{side}.{first + layers}.0.op"
            elif group == "upsamplers":
                has_attention = any(key.startswith(f"up_blocks.{level}.attentions") for key in state)
                new = f"{side}.{first + layers}.{2 if has_attention else 1}.conv"
            else:
                new = f"{side}.{first + number}.{0 if group == 'resnets' else 1}.{RESNET.get(rest, rest)}"
        found[f"{new}.{kind}"] = value.clone()
    return found


def open_clip(state: Mapping[str, torch.Tensor]) -> Tensors:
    """SDXL's second text encoder under OpenCLIP's names."""
    state = {name.removeprefix("text_model."): value for name, value in state.items()}
    found = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T,
    }
    stems = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
    for number in range(2):
        ours, theirs = f"encoder.layers.{number}.", f"transformer.resblocks.{number}."
        for kind in ("weight", "bias"):
            for stem, target in stems.items():
                found[f"{theirs}{target}.{kind}"] = state[f"{ours}{stem}.{kind}"]
            parts = [state[f"{ours}self_attn.{name}.{kind}"] for name in ("q_proj", "k_proj", "v_proj")]
            found[f"{theirs}attn.in_proj_{kind}"] = torch.cat(parts)
    return {name: value.clone() for name, value in found.items()}


def clip_l(state: Mapping[str, torch.Tensor]) -> Tensors:
    """A CLIP encoder under the names that transformers had before 5.6, as everyone's files have."""
    return {f"text_model.{name.removeprefix('text_model.')}": value.clone() for name, value in state.items()}


T5_STEMS = {
    "layer.0.layer_norm": "attn_norm",
    "layer.0.SelfAttention.q": "attn_q",
    "layer.0.SelfAttention.k": "attn_k",
    "layer.0.SelfAttention.v": "attn_v",
    "layer.0.SelfAttention.o": "attn_o",
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.1.layer_norm": "ffn_norm",
    "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up",
    "layer.1.DenseReluDense.wo": "ffn_down",
}


def llama_t5(state: Mapping[str, torch.Tensor]) -> Tensors:
    """A T5 encoder under llama.cpp's names, as its GGUF files have."""
    found = {
        "token_embd.weight": state["shared.weight"],
        "enc.output_norm.weight": state["encoder.final_layer_norm.weight"],
    }
    for name, value in state.items():
        if block := re.fullmatch(r"encoder\.block\.(\d+)\.(.+)\.weight", name):
            found[f"enc.blk.{block[1]}.{T5_STEMS[block[2]]}.weight"] = value
    return found


QWEN3_STEMS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def llama_qwen3(state: Mapping[str, torch.Tensor]) -> Tensors:
    """A Qwen3 under llama.cpp's names, as its GGUF files have."""
    found = {"token_embd.weight": state["embed_tokens.weight"], "output_norm.weight": state["norm.weight"]}
    for name, value in state.items():
        if block := re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", name):
            found[f"blk.{block[1]}.{QWEN3_STEMS[block[2]]}.weight"] = value
    return found


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """``tensors`` below ``prefix``."""
    return {prefix + name: value for name, value in tensors.items()}


def state_of(module: torch.nn.Module) -> Tensors:
    """The weights; one that is shared, once."""
    return {name: value.detach() for name, value in module.named_parameters()}


def scaled_fp8(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """As ComfyUI's ``*_fp8_e4m3fn_scaled`` files: matrices in fp8, each with a scale, and a mark."""
    found: Tensors = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for name, value in tensors.items():
        if value.dim() == 2 and name.endswith(".weight") and "embed" not in name and "shared" not in name:
            scale = value.abs().max() / 448
            found[name] = (value / scale).to(torch.float8_e4m3fn)
            found[f"{name.removesuffix('weight')}scale_weight"] = scale
        else:
            found[name] = value
    return found


def write_gguf(
    path: Path, tensors: Mapping[str, torch.Tensor], kind: str, architecture: str = "flux", *, every: bool = False
) -> None:
    """A GGUF as they are made for FLUX and T5: matrices of whole blocks quantized (or ``every`` tensor), the rest in
    F32."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, architecture)
    quantization = gguf.GGMLQuantizationType[kind]
    block, _ = gguf.GGML_QUANT_SIZES[quantization]
    for name, value in tensors.items():
        data = value.to(torch.float32).numpy().astype(np.float32)
        if (value.dim() == 2 or every) and value.shape[-1] % block == 0:
            writer.add_tensor(name, gguf.quants.quantize(data, quantization), raw_dtype=quantization)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_type(dtype: torch.dtype) -> Callable[[Mapping[str, torch.Tensor]], Tensors]:
    """A function that casts all tensors."""
    return lambda tensors: {name: value.to(dtype) for name, value in tensors.items()}


def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Save ``tensors``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path
