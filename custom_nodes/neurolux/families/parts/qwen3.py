"""Qwen3 as a text encoder: the model without its head, and its tokenizer with its own chat template."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ...weights.stamps import Shapes
from ..blocks import BlockLists
from ..spec import Config, Part, Signature, Tensors
from . import llama_cpp
from .shapes import numbered

TOKENIZER = Path("text_encoders/qwen25_tokenizer")
"""ComfyUI's tokenizer, beside its sd1_clip.py. Its words are Qwen3's; its chat template is Qwen2.5's."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""What Qwen3's own template makes of a conversation without tools: no system message that nobody wrote."""
OUTSIDE = {"token_embd": "embed_tokens", "output_norm": "norm"}
LAYERS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp's names (gguf's tensor_mapping.py, architecture qwen3)."""
BLOCK = re.compile(r"blk\.(\d+)\.(\w+)")
VL_FILES = ("*qwen3*vl*", "*qwen_3*vl*")
"""Name patterns of Qwen3-VL, whose GGUF files have the same tensors, and other weights."""
RELATIVES = (
    "layers.0.pre_feedforward_layernorm.weight",  # Gemma 3
    "blk.0.post_ffw_norm.weight",
    "visual.patch_embed.proj.weight",  # Qwen3-VL
    "layers.0.mlp.gate.weight",  # a mixture of experts
)
"""Tensors of models that have Qwen3's other tensors as well."""


def config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of Qwen3Model, with what all published sizes have in common."""
    vocabulary, width = shapes["embed_tokens.weight"]
    head = shapes["layers.0.self_attn.q_norm.weight"][0]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": numbered(shapes, r"layers\.(\d+)\."),
        "num_attention_heads": shapes["layers.0.self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes["layers.0.self_attn.k_proj.weight"][0] // head,
        "head_dim": head,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "max_position_embeddings": 40_960,
    }


def empty(config: Config, folder: Path | None) -> Any:
    """The encoder without weights."""
    import transformers

    return transformers.Qwen3Model(
        transformers.Qwen3Config.from_pretrained(folder) if folder else transformers.Qwen3Config(**config)
    )


def renamed_llama_cpp(tensors: Tensors) -> Tensors:
    """Rename the tensors from a GGUF file. Leaves out the head and llama.cpp's own."""
    return llama_cpp.renamed(tensors, BLOCK, OUTSIDE, LAYERS, "layers")


@cache
def tokenizer() -> Any:
    """Qwen3's tokenizer from ComfyUI's own files, read once: that takes long, and nothing adds tokens to it."""
    from transformers import Qwen2Tokenizer

    from ..tokenizers import tokenizer_folder

    made = Qwen2Tokenizer.from_pretrained(tokenizer_folder(TOKENIZER))
    made.chat_template = CHAT_TEMPLATE
    return made


def in_template(tokenizer: Any, text: str, *, thinking: bool = True) -> str:
    """``text`` as a message, before an answer with thoughts or without."""
    message = {"role": "user", "content": text}
    return tokenizer.apply_chat_template(
        [message], tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )


QWEN3 = Part(
    name="qwen3",
    title="Qwen3 encoder",
    empty=empty,
    config=config,
    signatures=(
        Signature("diffusers", "layers.0.self_attn.q_norm.weight", beside=("embed_tokens.weight",), without=RELATIVES),
        Signature("llama.cpp", "blk.0.attn_q_norm.weight", beside=("blk.0.ffn_gate.weight",), without=RELATIVES),
    ),
    renames={"llama.cpp": renamed_llama_cpp},
    blocks=BlockLists(("layers",)),
    optional_prefix="model.",
)

LAYER_LISTS = ("layers", "model.layers", "blk")
MOST_LAYERS = 64
"""Of the largest published Qwen3."""
AFTER_LAYERS = ("norm.", "model.norm.", "lm_head.", "output_norm.", "output.")
"""The beginnings of the names of what follows the layers, in folders and in files of all layouts."""


def first_layers(count: int) -> Part:
    """The encoder of a family that reads the outputs of layers up to number ``count``: without what comes after it.

    The part has the name of the whole one, because their files are the same.
    """

    def begin(config: Config, folder: Path | None) -> Any:
        return cut(empty(config, folder), count)

    later = [f"{layers}.{number}." for number in range(count, MOST_LAYERS) for layers in LAYER_LISTS]
    return replace(QWEN3, empty=begin, unread=(*later, *AFTER_LAYERS))


def cut(model: Any, count: int) -> Any:
    """``model``, a Qwen3Model, with its first ``count`` layers, the last of which is read as it is: without a norm."""
    import torch

    model.layers = model.layers[:count]
    model.config.num_hidden_layers = len(model.layers)
    model.norm = torch.nn.Identity()
    return model
