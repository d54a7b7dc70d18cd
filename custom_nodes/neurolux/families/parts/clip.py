"""CLIP's text encoders: L, and OpenCLIP's G."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ...weights.file_kinds import TensorInfo
from ...weights.stamps import Shapes
from ..spec import Config, Part, Signature, Tensors
from .shapes import numbered

HEAD = 64
G_WIDTH = 1280
TOKENS = 77
TOKENIZER = Path("sd1_tokenizer")
"""ComfyUI's tokenizer, beside its sd1_clip.py."""
DIFFUSERS_NAME = "text_model.encoder.layers.0.self_attn.q_proj.weight"
FLAT_NAME = "encoder.layers.0.self_attn.q_proj.weight"


def is_g(query: TensorInfo, prefix: str) -> bool:
    """Whether an encoder is the second one of SDXL: by its name in a checkpoint, else by its width."""
    return "clip_g" in prefix or "embedders.1" in prefix or query.shape[0] == G_WIDTH


def signatures(g: bool) -> tuple[Signature, ...]:
    """Signatures with transformers' names, which lack ``text_model.`` from 5.6 on."""
    return (
        Signature("diffusers", DIFFUSERS_NAME, accepts=lambda info, prefix: is_g(info, prefix) is g),
        Signature(
            "flat",
            FLAT_NAME,
            accepts=lambda info, prefix: (
                not prefix.endswith(("text_model.", "vision_model.")) and is_g(info, prefix) is g
            ),
        ),
    )


def config(shapes: Shapes, *, projected: bool) -> dict[str, Any]:
    """Configuration of CLIPTextModel, or with ``projected`` of CLIPTextModelWithProjection (OpenCLIP's G, which uses
    the exact GELU)."""
    own = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    width = own["encoder.layers.0.self_attn.q_proj.weight"][0]
    vocabulary = own["embeddings.token_embedding.weight"][0]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": own["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": numbered(own, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(width // HEAD, 1),
        "max_position_embeddings": own["embeddings.position_embedding.weight"][0],
        "projection_dim": own.get("text_projection.weight", (width,))[0],
        "hidden_act": "gelu" if projected else "quick_gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def empty(config: Config, folder: Path | None, *, projected: bool) -> Any:
    """The encoder without weights."""
    import transformers

    model_class = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    found = transformers.CLIPTextConfig.from_pretrained(folder) if folder else transformers.CLIPTextConfig(**config)
    return model_class(found)


def renamed_open_clip(tensors: Tensors) -> Tensors:
    """Rename OpenCLIP's tensors, with diffusers' converter."""
    from types import SimpleNamespace

    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    width = tensors["ln_final.weight"].shape[0]
    text_model: Any = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    return convert_open_clip_checkpoint(text_model, tensors, prefix="")


@cache
def tokenizer(*, pad_token: str | None = None) -> Any:
    """CLIP's tokenizer from ComfyUI's own files, read once: that takes long, and nothing adds tokens to it."""
    from transformers import CLIPTokenizer

    from ..tokenizers import tokenizer_folder

    more = {} if pad_token is None else {"pad_token": pad_token}
    return CLIPTokenizer.from_pretrained(tokenizer_folder(TOKENIZER), model_max_length=TOKENS, **more)


CLIP_L = Part(
    name="clip-l",
    title="CLIP-L encoder",
    empty=lambda config, folder: empty(config, folder, projected=False),
    config=lambda shapes: config(shapes, projected=False),
    signatures=signatures(g=False),
    optional_prefix="text_model.",
)
CLIP_G = Part(
    name="clip-g",
    title="CLIP-G encoder",
    empty=lambda config, folder: empty(config, folder, projected=True),
    config=lambda shapes: config(shapes, projected=True),
    signatures=(*signatures(g=True), Signature("original", "transformer.resblocks.0.attn.in_proj_weight")),
    renames={"original": renamed_open_clip},
    optional_prefix="text_model.",
)
