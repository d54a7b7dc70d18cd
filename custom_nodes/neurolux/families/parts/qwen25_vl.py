"""Qwen2.5-VL as a text encoder: its language model alone. Its vision tower and its head are never loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...weights.stamps import Shapes
from ..blocks import BlockLists
from ..spec import Config, Part, Signature, Tensors
from . import llama_cpp
from .shapes import numbered

FILES = ("qwen_2.5_vl_7b*", "qwen*2.5*vl*7b*")
"""Name patterns of published files."""
TEXT_ONLY_FILES = ("*qwen2.5[-_][!v]*", "*qwen_2.5[-_][!v]*", "*qwen2[-_][!v]*")
"""Qwen2.5 without vision has the same shapes, and other weights. A GGUF does not tell them apart, but its name does."""
LANGUAGE = "model.language_model."
HEAD = 128
"""Width of an attention head in every published size."""
MROPE_SECTION = [16, 24, 24]
"""How many frequencies of a head encode the time, the row and the column; of a text all three are the same."""
OUTSIDE = {"token_embd": "embed_tokens", "output_norm": "norm"}
LAYERS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp's names (gguf's tensor_mapping.py, architecture qwen2vl)."""
BLOCK = re.compile(r"blk\.(\d+)\.(\w+)")
FIRST_BIAS = "layers.0.self_attn.q_proj.bias"
PATCHES = "visual.patch_embed.proj.weight"


def config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of Qwen2_5_VLForConditionalGeneration, with what all published sizes have in common."""
    vocabulary, width = shapes[f"{LANGUAGE}embed_tokens.weight"]
    first = f"{LANGUAGE}layers.0"
    return {
        "text_config": {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": shapes[f"{first}.mlp.gate_proj.weight"][0],
            "num_hidden_layers": numbered(shapes, rf"{re.escape(LANGUAGE)}layers\.(\d+)\."),
            "num_attention_heads": shapes[f"{first}.self_attn.q_proj.weight"][0] // HEAD,
            "num_key_value_heads": shapes[f"{first}.self_attn.k_proj.weight"][0] // HEAD,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 128_000,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": MROPE_SECTION,
            },
        }
    }


def text_width(config: Config) -> int:
    """The width of the embeddings."""
    return config["text_config"]["hidden_size"]


def empty(config: Config, folder: Path | None) -> Any:
    """The encoder without weights, and without what reads no text."""
    import transformers

    kind = transformers.Qwen2_5_VLConfig
    return text_only(kind.from_pretrained(folder) if folder else kind(**config))


def text_only(config: Any) -> Any:
    """Qwen2_5_VLForConditionalGeneration without its vision tower and its head: the hidden states stay the same."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    config.vision_config.depth = 0  # its blocks would be made in vain
    made: Any = Qwen2_5_VLForConditionalGeneration(config)
    made.model.visual = None
    made.lm_head = torch.nn.Identity()
    return made


def renamed(tensors: Tensors) -> Tensors:
    """Rename the language model's tensors to those of transformers 5. Older files have ``model.`` alone."""
    return {
        name if name.startswith(LANGUAGE) else LANGUAGE + name.removeprefix("model."): value
        for name, value in tensors.items()
    }


def renamed_llama_cpp(tensors: Tensors) -> Tensors:
    """Rename the tensors from a GGUF file. Leaves out the head and llama.cpp's own."""
    return llama_cpp.renamed(tensors, BLOCK, OUTSIDE, LAYERS, f"{LANGUAGE}layers", LANGUAGE)


QWEN25_VL = Part(
    name="qwen2.5-vl",
    title="Qwen2.5-VL encoder",
    empty=empty,
    config=config,
    signatures=(
        Signature("diffusers", PATCHES, beside=(f"model.{FIRST_BIAS}",)),
        Signature("diffusers", f"model.{PATCHES}", beside=(f"{LANGUAGE}{FIRST_BIAS}",)),
        Signature("llama.cpp", "blk.0.attn_q.bias", beside=("blk.0.ffn_gate.weight", "blk.0.ffn_norm.weight")),
    ),
    renames={"diffusers": renamed, "llama.cpp": renamed_llama_cpp},
    unread=("visual.", "model.visual.", "lm_head."),
    blocks=BlockLists((f"{LANGUAGE}layers",)),
)
