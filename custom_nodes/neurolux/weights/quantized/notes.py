"""Which quantized formats of a weight file can be read, and the name of every other one. Reads no weights.

Programs describe how they stored a layer in three ways: small tensors of JSON text beside it (ComfyUI's
``comfy_quant``, the ``quant_state`` of bitsandbytes), the file's metadata (ComfyUI's ``_quantization_metadata``), or
only by the names and types of its tensors. A format that is not recognized must be refused: its weights have plausible
shapes and would be computed with, and the image would be noise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..file_kinds import TensorInfo
from ..headers import WeightHeader
from ..user_files import json_object

COMFY_NOTE = ".comfy_quant"
COMFY_METADATA = "_quantization_metadata"
NF4_NOTE = ".quant_state.bitsandbytes__nf4"
FP4_NOTE = ".quant_state.bitsandbytes__fp4"
INT8_SCALE = ".SCB"
"""bitsandbytes' scale of each row of an int8 weight, times 127."""
PLAIN_FP8 = ("float8_e4m3fn", "float8_e5m2")
INT8 = "int8_tensorwise"
HARMLESS = ("format", "full_precision_matrix_mult", "per_row", "per_channel", "convrot", "convrot_groupsize")
"""Keys of a ``comfy_quant`` that the pack understands, besides those that begin with ``orig_``."""
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
SCALED = (".scale_weight", ".weight_scale")
KNOWN_BESIDE = {"scale_weight", "weight_scale", "scale_input", "input_scale", "weight_format", "SCB", "comfy_quant"}
BESIDE = re.compile(r"weight_|scale|zero|quant|q(weight|zeros)|[wa]?scales|svd_|smooth")
"""How names begin that quantizers put beside a weight."""
MARKS = (
    (re.compile(r"\.(wscales|smooth_factor|smooth|wtscale|wcscales)$"), "SVDQuant (Nunchaku)"),
    (re.compile(r"\.(qzeros|g_idx)$"), "GPTQ or AWQ"),
    (re.compile(r"\.qweight$"), "packed integers (qweight)"),
    (re.compile(r"\.weight_scale_2$"), "nvfp4"),
    (re.compile(r"\.weight_packed$"), "compressed-tensors"),
    (re.compile(r"\.weight\._(data|scale)$"), "quanto"),
    (re.compile(r"\.W_q$"), "HQQ"),
    (re.compile(r"\.(svd_up|svd_down)$"), "SDNQ"),
    (re.compile(re.escape(FP4_NOTE) + "$"), "bitsandbytes fp4"),
)
"""Names that belong to one format that cannot be read."""


def unreadable_format(header: WeightHeader, prefix: str = "") -> str | None:
    """The name of the format of a component, whose tensor names begin with ``prefix``, if it cannot be read."""
    return next(problems(header, prefix), None)


def problems(header: WeightHeader, prefix: str) -> Iterator[str]:
    """The formats in the component that cannot be read."""
    if header.gguf:
        return
    own = {name: info for name, info in header.tensors.items() if name.startswith(prefix)}
    for pattern, title in MARKS:
        if any(pattern.search(name) for name in own):
            yield title
    for layer, note in comfy_notes(header).items():
        if layer.startswith(prefix) or prefix + layer + ".weight" in own:
            yield from comfy_problems(note)
    for name, info in own.items():
        yield from tensor_problems(name, info, header)


def comfy_problems(note: Mapping[str, Any]) -> Iterator[str]:
    """What the pack cannot do with a layer that ComfyUI described."""
    name = str(note.get("format"))
    if name not in (*PLAIN_FP8, INT8):
        yield name
        return
    rotated = bool(note.get("convrot"))
    unknown = [key for key, value in note.items() if value and key not in HARMLESS and not key.startswith("orig_")]
    if unknown or (rotated and name != INT8):
        yield f"{name} with {', '.join(unknown) or 'convrot'}"
    size = note.get("convrot_groupsize", 256)
    if rotated and not (isinstance(size, int) and size in (4, 16, 64, 256, 1024)):
        yield f"{name} with convrot in groups of {size}"


def tensor_problems(name: str, info: TensorInfo, header: WeightHeader) -> Iterator[str]:
    """Types that no weight of a known format has, and unknown companions of a weight."""
    stem, _, attribute = name.rpartition(".")
    tensors = header.tensors
    if attribute == "weight" and len(info.shape) > 1 and info.type not in FLOATS:
        scaled = any(stem + scale in tensors for scale in (*SCALED, INT8_SCALE))
        packed = name + NF4_NOTE in tensors
        noted = comfy_notes(header).get(stem, {}).get("format") in PLAIN_FP8
        if not (info.type == "I8" and scaled) and not (info.type == "U8" and (packed or noted)):
            yield f"weights of type {info.type}" + ("" if info.type not in ("I8", "U8") else " without a scale")
    elif attribute not in KNOWN_BESIDE and BESIDE.match(attribute) and f"{stem}.weight" in tensors:
        yield f"weights with {attribute}"


def comfy_notes(header: WeightHeader) -> Mapping[str, Mapping[str, Any]]:
    """ComfyUI's description of each quantized layer, by the layer's name in the file."""
    found: dict[str, Mapping[str, Any]] = {}
    text = header.metadata.get(COMFY_METADATA)
    if text:
        try:
            layers = json_object(text.encode()).get("layers", {})
        except ValueError:
            return {"": {"format": f"an unreadable {COMFY_METADATA}"}}
        if not isinstance(layers, dict):
            return {"": {"format": f"an unreadable {COMFY_METADATA}"}}
        for layer, note in layers.items():
            found[layer] = note if isinstance(note, dict) else {"format": json.dumps(note)}
    for name, note in header.notes.items():
        if name.endswith(COMFY_NOTE):
            found[name.removesuffix(COMFY_NOTE)] = note
    return found
