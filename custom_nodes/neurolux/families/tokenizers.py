"""The tokenizers of CLIP and T5 from ComfyUI's own folders: single files bring none, and no network is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import WeightsMissing

CLIP_TOKENIZER = Path("sd1_tokenizer")
T5_TOKENIZER = Path("text_encoders/t5_tokenizer")
CLIP_TOKENS = 77
T5_TOKENS = 512


def comfy_tokenizers(family: str, t5_tokens: int = T5_TOKENS) -> dict[str, Any]:
    """``tokenizer`` and ``tokenizer_2`` of a pipeline, as the models' own repositories configure them."""
    from transformers import CLIPTokenizer, T5Tokenizer

    clip, t5 = tokenizer_folder(CLIP_TOKENIZER), tokenizer_folder(T5_TOKENIZER)
    first = CLIPTokenizer.from_pretrained(clip, model_max_length=CLIP_TOKENS)
    if family == "flux":
        return {
            "tokenizer": first,
            "tokenizer_2": T5Tokenizer.from_pretrained(t5, model_max_length=max(t5_tokens, T5_TOKENS)),
        }
    # OpenCLIP, which made SDXL's second encoder, fills up with token 0.
    second = CLIPTokenizer.from_pretrained(clip, model_max_length=CLIP_TOKENS, pad_token="!")
    return {"tokenizer": first, "tokenizer_2": second}


def tokenizer_folder(name: Path) -> Path:
    """Where ComfyUI keeps a tokenizer. Raises WeightsMissing for a ComfyUI that has moved it."""
    import comfy.sd1_clip

    folder = Path(comfy.sd1_clip.__file__).parent / name
    if not folder.is_dir():
        raise WeightsMissing(
            f"this ComfyUI has no {name} beside its sd1_clip.py, which models from single files need; "
            "use the diffusers folder of the model instead, or update the node pack"
        )
    return folder
