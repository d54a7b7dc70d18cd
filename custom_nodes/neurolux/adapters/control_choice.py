"""Which ControlNet ``auto`` means: a file of the user's first, else the catalog's, for this model and this image.

The width of the layers that meet decides what fits: FLUX's inner dimension, SDXL's cross attention. No weights are
opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..catalog.auxiliary import CatalogControlNet
from ..errors import WeightsMissing
from ..weights.stamps import FileStamp, read_config, read_shapes
from .detect import detect

UNION_WORD = "union"
SDXL_WIDTH_KEYS = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "control_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
)
"""Of an SDXL ControlNet in one file, under diffusers' names and under the original ones."""


def model_width(family: str, denoiser: Any) -> int:
    """What a ControlNet must have, to meet ``denoiser``'s layers."""
    return denoiser.inner_dim if family == "flux" else denoiser.config.cross_attention_dim


def file_width(file: FileStamp, family: str) -> int | None:
    """What the ControlNet in ``file`` has; None where its names do not tell. Raises WeightsMissing if damaged."""
    if file.path.is_dir():
        config = read_config(file.name, file.path)
        if family == "sdxl":
            return config.get("cross_attention_dim")
        heads, width = config.get("num_attention_heads"), config.get("attention_head_dim")
        return heads * width if heads and width else None
    header = read_shapes(file.path)
    if family == "flux":
        shape = header.get("x_embedder.weight")
        return shape[0] if shape else None
    return next((header[key][1] for key in SDXL_WIDTH_KEYS if key in header), None)


def choose_file(files: Iterable[FileStamp], family: str, width: int, kind: str) -> FileStamp | None:
    """The first of ``files`` that fits and whose name says ``kind``; then the first whose name says union."""
    files = list(files)
    named = {word: [file for file in files if word in file.name.lower()] for word in (kind, UNION_WORD)}
    for file in [*named[kind], *named[UNION_WORD]]:
        try:
            found = detect("controlnet", file)
            fits = found.problem is None and found.family == family and file_width(file, family) in (width, None)
        except WeightsMissing:
            continue  # damaged; chosen by name it says so
        if fits:
            return file
    return None


def choose_catalog(
    entries: Sequence[CatalogControlNet], family: str, width: int, kind: str
) -> CatalogControlNet | None:
    """The catalog's first ControlNet that fits."""
    return next((one for one in entries if (one.family, one.width) == (family, width) and kind in one.kinds), None)
