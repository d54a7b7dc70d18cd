"""Qwen3-VL as a text encoder: its language model alone. Its vision tower and its head are never loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...weights.stamps import Shapes
from ..blocks import BlockLists
from ..spec import Config, Part, Signature, Tensors
from . import llama_cpp, qwen3
from .shapes import numbered

FILES = ("qwen3vl_4b*", "qwen*3*vl*4b*")
"""Name patterns of published files."""
TEXT_ONLY_FILES = ("*qwen3[-_][!v]*", "*qwen_3[-_][!v]*")
"""Qwen3 without vision has the same shapes, and other weights. A GGUF does not tell them apart, but its name does."""
LANGUAGE = "language_model."
MROPE_SECTION = [24, 20, 20]
"""How many frequencies of a head encode the time, the row and the column; of a text all three are the same."""
FIRST_NORM = "layers.0.self_attn.q_norm.weight"
PATCHES = "visual.patch_embed.proj.weight"
EXPERTS = ("layers.0.mlp.gate.weight",)
"""Of a mixture of experts, which has the other tensors as well."""


def config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of Qwen3VLModel, with what all published sizes have in common."""
    vocabulary, width = shapes[f"{LANGUAGE}embed_tokens.weight"]
    first = f"{LANGUAGE}layers.0"
    head = shapes[f"{LANGUAGE}{FIRST_NORM}"][0]
    return {
        "text_config": {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": shapes[f"{first}.mlp.gate_proj.weight"][0],
            "num_hidden_layers": numbered(shapes, rf"{re.escape(LANGUAGE)}layers\.(\d+)\."),
            "num_attention_heads": shapes[f"{first}.self_attn.q_proj.weight"][0] // head,
            "num_key_value_heads": shapes[f"{first}.self_attn.k_proj.weight"][0] // head,
            "head_dim": head,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 262_144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_section": MROPE_SECTION,
                "mrope_interleaved": True,
            },
        }
    }


def text_width(config: Config) -> int:
    """The width of the embeddings."""
    return config["text_config"]["hidden_size"]


def empty(config: Config, folder: Path | None) -> Any:
    """The encoder without weights, and without what reads no text."""
    import transformers

    kind = transformers.Qwen3VLConfig
    return text_only(kind.from_pretrained(folder) if folder else kind(**config))


def text_only(config: Any) -> Any:
    """Qwen3VLModel without its vision tower: the hidden states of a text stay the same."""
    from transformers import Qwen3VLModel

    config.vision_config.depth = 0  # its blocks would be made in vain
    made: Any = Qwen3VLModel(config)
    made.visual = None
    return made


def renamed(tensors: Tensors) -> Tensors:
    """Rename the language model's tensors to those of the class. ComfyUI's files have ``model.`` alone."""
    bare = {name.removeprefix("model."): value for name, value in tensors.items()}
    return {name if name.startswith(LANGUAGE) else LANGUAGE + name: value for name, value in bare.items()}


def renamed_llama_cpp(tensors: Tensors) -> Tensors:
    """Rename the tensors from a GGUF file. Leaves out the head and llama.cpp's own."""
    return llama_cpp.renamed(tensors, qwen3.BLOCK, qwen3.OUTSIDE, qwen3.LAYERS, f"{LANGUAGE}layers", LANGUAGE)


QWEN3_VL = Part(
    name="qwen3-vl",
    title="Qwen3-VL encoder",
    empty=empty,
    config=config,
    signatures=(
        *(
            Signature("diffusers", PATCHES, beside=(f"{stem}{FIRST_NORM}",), without=EXPERTS)
            for stem in (LANGUAGE, "model.", "")
        ),
        Signature("llama.cpp", "blk.0.attn_q_norm.weight", beside=("blk.0.ffn_gate.weight",), without=qwen3.RELATIVES),
    ),
    renames={"diffusers": renamed, "llama.cpp": renamed_llama_cpp},
    unread=("visual.", "model.visual.", "lm_head."),
    blocks=BlockLists((f"{LANGUAGE}layers",)),
)
