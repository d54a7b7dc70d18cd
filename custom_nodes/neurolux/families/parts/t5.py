"""T5's encoder, version 1.1 (gated GELU)."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from ...weights.stamps import Shapes
from ..blocks import BlockLists
from ..spec import Config, Part, Signature, Tensors
from . import llama_cpp
from .shapes import numbered

TOKENS = 512
FILES = ("t5xxl_fp16*", "t5xxl*", "t5-v1_1-xxl*", "t5*")
"""Name patterns of published files."""
TOKENIZER = Path("text_encoders/t5_tokenizer")
"""ComfyUI's tokenizer, beside its sd1_clip.py."""
OUTSIDE = {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm"}
LAYERS = {
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
BLOCK = re.compile(r"enc\.blk\.(\d+)\.(\w+)")


def config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of T5EncoderModel."""
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


def empty(config: Config, folder: Path | None) -> Any:
    """The encoder without weights."""
    import transformers

    return transformers.T5EncoderModel(
        transformers.T5Config.from_pretrained(folder) if folder else transformers.T5Config(**config)
    )


def renamed_llama_cpp(tensors: Tensors) -> Tensors:
    """Rename the encoder's tensors from a GGUF file. Leaves out those of a decoder and llama.cpp's own."""
    return llama_cpp.renamed(tensors, BLOCK, OUTSIDE, LAYERS, "encoder.block")


@cache
def tokenizer(tokens: int) -> Any:
    """T5's tokenizer from ComfyUI's own files, read once: that takes long, and nothing adds tokens to it."""
    from transformers import T5Tokenizer

    from ..tokenizers import tokenizer_folder

    return T5Tokenizer.from_pretrained(tokenizer_folder(TOKENIZER), model_max_length=max(tokens, TOKENS))


T5 = Part(
    name="t5",
    title="T5 encoder",
    empty=empty,
    config=config,
    signatures=(
        Signature("diffusers", "encoder.block.0.layer.0.SelfAttention.q.weight"),
        Signature("llama.cpp", "enc.blk.0.attn_rel_b.weight"),
    ),
    renames={"llama.cpp": renamed_llama_cpp},
    blocks=BlockLists(("encoder.block",)),
    tied={"encoder.embed_tokens.weight": "shared.weight"},
)
