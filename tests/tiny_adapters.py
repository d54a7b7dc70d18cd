"""Tiny LoRAs and ControlNets for the tiny models: the real classes and file layouts, seeded random values.

As in tiny_models.py, nothing here imports ComfyUI or the node pack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    DiffusionPipeline,
    FluxControlNetModel,
    QwenImageControlNetModel,
)
from safetensors.torch import save_file

from tests.tiny_models import TEXT_WIDTH

LORA_SPREAD = 0.3
"""Standard deviation of a tiny LoRA's values: enough to change an image of 8 bits a channel everywhere."""
State = dict[str, torch.Tensor]


def lora_state(pipe: DiffusionPipeline, components: Mapping[str, str], *, rank: int, seed: int) -> State:
    """Random layers for every linear layer whose name ends in one of ``components[component]`` (a regex-free list)."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for component, endings in components.items():
        for name, module in getattr(pipe, component).named_modules():
            if isinstance(module, torch.nn.Linear) and name.endswith(tuple(endings.split())):
                down = torch.randn(rank, module.in_features, generator=generator) * LORA_SPREAD
                up = torch.randn(module.out_features, rank, generator=generator) * LORA_SPREAD
                state[f"{component}.{name}.lora_A.weight"] = down
                state[f"{component}.{name}.lora_B.weight"] = up
    return state


ATTENTION = "to_q to_k to_v to_out.0"
TEXT_ATTENTION = "q_proj k_proj v_proj out_proj"


def write_peft(path: Path, folder: Path, *, seed: int = 0, rank: int = 4, text: bool = False) -> Path:
    """A LoRA as diffusers and peft save it, for the pipeline in ``folder``."""
    save_file(peft_state(folder, seed=seed, rank=rank, text=text), path)
    return path


def peft_state(folder: Path, *, seed: int, rank: int, text: bool) -> State:
    """Its tensors."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    components = {"transformer" if hasattr(pipe, "transformer") else "unet": ATTENTION}
    if text:
        components["text_encoder"] = TEXT_ATTENTION
        if "unet" in components:
            components["text_encoder_2"] = TEXT_ATTENTION
    return lora_state(pipe, components, rank=rank, seed=seed)


KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def write_kohya_sdxl(path: Path, folder: Path, *, seed: int = 0, rank: int = 4, alpha: float = 2.0) -> Path:
    """The same as sd-scripts saves it: underscores for dots, lora_down and lora_up, an alpha of its own."""
    state: State = {}
    for key, weight in peft_state(folder, seed=seed, rank=rank, text=True).items():
        component, _, layer = key.partition(".")
        layer, _, kind = layer.removesuffix(".weight").rpartition(".")
        if component != "unet" and not layer.startswith("text_model."):  # transformers 5 has flattened CLIPTextModel
            layer = "text_model." + layer
        name = f"{KOHYA[component]}_{layer.replace('.', '_')}"
        state[f"{name}.{'lora_down' if kind == 'lora_A' else 'lora_up'}.weight"] = weight
        state[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(state, path)
    return path


def write_kohya_flux(path: Path, *, width: int = 32, seed: int = 0, rank: int = 4, alpha: float = 2.0) -> Path:
    """A FLUX LoRA as sd-scripts saves it: the original model's names, queries, keys and values in one."""
    generator = torch.Generator().manual_seed(seed)
    layers = {
        "double_blocks_0_img_attn_qkv": (width, 3 * width),
        "double_blocks_0_img_attn_proj": (width, width),
        "double_blocks_0_txt_attn_qkv": (width, 3 * width),
        "double_blocks_0_img_mlp_0": (width, 4 * width),
        "single_blocks_0_linear2": (5 * width, width),
    }
    state: State = {}
    for name, (inputs, outputs) in layers.items():
        state[f"lora_unet_{name}.lora_down.weight"] = torch.randn(rank, inputs, generator=generator) * LORA_SPREAD
        state[f"lora_unet_{name}.lora_up.weight"] = torch.randn(outputs, rank, generator=generator) * LORA_SPREAD
        state[f"lora_unet_{name}.alpha"] = torch.tensor(alpha)
    save_file(state, path)
    return path


def write_xlabs_flux(path: Path, *, width: int = 32, seed: int = 0, rank: int = 4) -> Path:
    """A FLUX LoRA as XLabs' trainer saves it."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, outputs in {"qkv_lora1": 3 * width, "qkv_lora2": 3 * width, "proj_lora1": width}.items():
        prefix = f"double_blocks.0.processor.{name}"
        state[f"{prefix}.down.weight"] = torch.randn(rank, width, generator=generator) * LORA_SPREAD
        state[f"{prefix}.up.weight"] = torch.randn(outputs, rank, generator=generator) * LORA_SPREAD
    save_file(state, path)
    return path


def randomized(module: Any, seed: int) -> Any:
    """``module`` with its zero layers (a new ControlNet changes nothing) filled as well."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            if not weight.any():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return module.eval()


def flux_controlnet(
    *, seed: int, modes: int | None = None, guidance_embeds: bool = True, blocks: int = 1
) -> FluxControlNetModel:
    """A ControlNet of the tiny FLUX models' widths, with ``blocks`` of each kind; ``modes`` makes it a union."""
    torch.manual_seed(seed)
    module = FluxControlNetModel(
        patch_size=1,
        in_channels=16,
        num_layers=blocks,
        num_single_layers=blocks,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=guidance_embeds,
        num_mode=modes,
    )
    return randomized(module, seed)


UNET_SHAPE: dict[str, Any] = {
    "in_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 1),
    "projection_class_embeddings_input_dim": 6 * 8 + TEXT_WIDTH,
    "cross_attention_dim": 2 * TEXT_WIDTH,
    "norm_num_groups": 8,
    "conditioning_embedding_out_channels": (4, 8, 8, 16),
}
"""Of the tiny SDXL models' UNet."""


def sdxl_controlnet(*, seed: int) -> ControlNetModel:
    """A ControlNet of the tiny SDXL models' shape."""
    torch.manual_seed(seed)
    return randomized(ControlNetModel(**UNET_SHAPE), seed)


def sdxl_union(*, seed: int) -> ControlNetUnionModel:
    """A union ControlNet of the tiny SDXL models' shape, for six kinds of images."""
    torch.manual_seed(seed)
    more = {"num_control_type": 6, "num_trans_channel": 16, "num_trans_head": 8, "num_proj_channel": 16}
    return randomized(ControlNetUnionModel(**UNET_SHAPE, **more), seed)


def qwen_controlnet(*, seed: int, extra: int = 0) -> QwenImageControlNetModel:
    """A ControlNet of the tiny Qwen-Image's widths; one with ``extra`` channels also takes a masked image."""
    torch.manual_seed(seed)
    module = QwenImageControlNetModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6), extra_condition_channels=extra,
    )  # fmt: skip
    return randomized(module, seed)


CONTROLNETS: dict[str, Callable[[], Any]] = {
    "tiny-flux-canny": lambda: flux_controlnet(seed=11),
    "tiny-flux-depth": lambda: flux_controlnet(seed=12),
    "tiny-flux-union": lambda: flux_controlnet(seed=13, modes=7),
    "tiny-sdxl-canny": lambda: sdxl_controlnet(seed=14),
    "tiny-sdxl-depth": lambda: sdxl_controlnet(seed=15),
    "tiny-sdxl-union": lambda: sdxl_union(seed=16),
    "tiny-qwen-image-union": lambda: qwen_controlnet(seed=17),
}


def write_controlnets(root: Path) -> dict[str, Path]:
    """Each tiny ControlNet as a diffusers folder below ``root`` (ComfyUI's models/controlnet)."""
    folders = {}
    for name, make in CONTROLNETS.items():
        folders[name] = root / name
        if not (folders[name] / "config.json").is_file():
            make().save_pretrained(folders[name])
    return folders
