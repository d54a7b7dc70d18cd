"""Finds ComfyUI's tokenizers of CLIP and T5. Single files contain none, and these need no download."""

from __future__ import annotations

import inspect
from pathlib import Path

from ..errors import WeightsMissing


def tokenizer_folder(name: Path) -> Path:
    """ComfyUI's folder of a tokenizer. Raises WeightsMissing if this version of ComfyUI has moved it."""
    import comfy.sd1_clip

    folder = Path(inspect.getfile(comfy.sd1_clip)).parent / name
    if not folder.is_dir():
        raise WeightsMissing(
            f"this ComfyUI has no {name} beside its sd1_clip.py, which models from single files need; "
            "use the diffusers folder of the model instead, or update the node pack"
        )
    return folder
