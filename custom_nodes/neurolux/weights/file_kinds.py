"""What a single weight file is: told from the names of its tensors, never from the file's name.

A file may hold one component (a FLUX transformer, a T5 encoder) or all of them (a checkpoint). Each component is found
by one tensor that no other has, whatever prefix the file puts before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .headers import TensorInfo, WeightHeader

Part = Literal["flux-transformer", "sdxl-unet", "sd15-unet", "t5", "clip-l", "clip-g", "vae"]
"""A component that a file can hold."""
Layout = Literal["diffusers", "original", "flat", "llama.cpp"]
"""How its tensors are named: as diffusers or transformers do, as the model's authors do (BFL, LDM, OpenCLIP), as
transformers do from 5.6 on, without ``text_model.``, or as llama.cpp's converter does (GGUF files of T5)."""
Kind = Literal[
    "FLUX transformer", "SDXL UNet", "Stable Diffusion 1.5 UNet", "T5 encoder", "CLIP-L encoder", "CLIP-G encoder",
    "VAE", "FLUX checkpoint", "SDXL checkpoint", "LoRA", "ControlNet", "UMT5 encoder, which other models use",
    "file of another kind of model",
]  # fmt: skip

SIGNATURES: tuple[tuple[Part | Literal["clip"], Layout, str], ...] = (
    ("flux-transformer", "original", "double_blocks.0.img_attn.norm.key_norm.scale"),
    ("flux-transformer", "diffusers", "transformer_blocks.0.attn.norm_added_k.weight"),
    ("sdxl-unet", "original", "input_blocks.0.0.weight"),
    ("sdxl-unet", "diffusers", "down_blocks.0.resnets.0.conv1.weight"),
    ("t5", "diffusers", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    ("t5", "llama.cpp", "enc.blk.0.attn_rel_b.weight"),
    ("clip", "diffusers", "text_model.encoder.layers.0.self_attn.q_proj.weight"),
    ("clip", "flat", "encoder.layers.0.self_attn.q_proj.weight"),
    ("clip-g", "original", "transformer.resblocks.0.attn.in_proj_weight"),
    ("vae", "original", "decoder.mid.block_1.conv1.weight"),
    ("vae", "diffusers", "decoder.mid_block.resnets.0.conv1.weight"),
)
REQUIRED_BESIDE = {
    ("flux-transformer", "original"): "single_blocks.0.linear1.weight",
    ("flux-transformer", "diffusers"): "single_transformer_blocks.0.proj_mlp.weight",
    ("sdxl-unet", "original"): "label_emb.0.0.weight",
    ("sdxl-unet", "diffusers"): "add_embedding.linear_1.weight",
}
"""What tells FLUX from its relatives, and SDXL from Stable Diffusion 1 and 2."""
UMT5_MARKS = ("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight", "enc.blk.1.attn_rel_b.weight")
"""T5 has the bias in its first block only, and a vocabulary of its own; UMT5 (of Wan and others) has one in each."""
CLIP_G_WIDTH = 1280
LORA_MARKS = (".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", "lora_A.default.weight")
CONTROLNET_MARKS = ("controlnet_", "control_model.", "input_hint_block.")
NAMES: dict[Part, Kind] = {
    "flux-transformer": "FLUX transformer",
    "sdxl-unet": "SDXL UNet",
    "sd15-unet": "Stable Diffusion 1.5 UNet",
    "t5": "T5 encoder",
    "clip-l": "CLIP-L encoder",
    "clip-g": "CLIP-G encoder",
    "vae": "VAE",
}


@dataclass(frozen=True)
class Place:
    """Where in a file a component is: what its tensors' names begin with, and how they go on."""

    prefix: str
    layout: Layout


@dataclass(frozen=True)
class FileKind:
    """What a file is, and the components in it."""

    kind: Kind
    parts: Mapping[Part, Place]


def identify(header: WeightHeader) -> FileKind:
    """What the file with ``header`` is."""
    tensors = header.tensors
    if any(name.endswith(LORA_MARKS) for name in tensors):
        return FileKind("LoRA", {})
    if any(name.startswith(CONTROLNET_MARKS) for name in tensors):
        return FileKind("ControlNet", {})
    if any(name.endswith(UMT5_MARKS) for name in tensors):
        return FileKind("UMT5 encoder, which other models use", {})
    parts = find_parts(tensors)
    if "flux-transformer" in parts and len(parts) > 1:
        return FileKind("FLUX checkpoint", parts)
    if "sdxl-unet" in parts and len(parts) > 1:
        return FileKind("SDXL checkpoint", parts)
    if len(parts) == 1:
        return FileKind(NAMES[next(iter(parts))], parts)
    return FileKind("file of another kind of model", {})


def find_parts(tensors: Mapping[str, TensorInfo]) -> dict[Part, Place]:
    """The components among ``tensors``."""
    parts: dict[Part, Place] = {}
    for part, layout, signature in SIGNATURES:
        for name in tensors:
            if not name.endswith(signature):
                continue
            prefix = name[: -len(signature)]
            beside = REQUIRED_BESIDE.get((part, layout))
            if (prefix and not prefix.endswith(".")) or (beside is not None and prefix + beside not in tensors):
                continue
            if layout == "flat" and prefix.endswith(("text_model.", "vision_model.")):
                continue
            found: Part = clip_part(tensors[name], prefix) if part == "clip" else part
            parts.setdefault(found, Place(prefix, layout))
    return parts


def clip_part(query: TensorInfo, prefix: str) -> Part:
    """Which of SDXL's two CLIP encoders one is: by its name in a checkpoint, else by its width."""
    if "clip_g" in prefix or "embedders.1" in prefix:
        return "clip-g"
    return "clip-g" if query.shape[0] == CLIP_G_WIDTH else "clip-l"
