"""Brings the quantized layers of a file into one form, whoever wrote them, without decoding their weights.

The form: ``X.weight``, a scale ``X.scale_weight`` (for the whole weight, per row, or per 64 values of a row for NF4),
and ``X.rotation`` if the inputs of the weight were rotated (ConvRot). NF4 weights stay packed, two values a byte, as
(rows, columns / 2), so that a fused projection can be split by rows like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from ..headers import WeightHeader, damaged
from ..key_maps import ROTATION, SCALES
from .notes import INT8_SCALE, NF4_NOTE, PLAIN_FP8, comfy_notes
from .storage import NF4_BLOCK, NF4_LEVELS, from_nf4

SEED = ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1))
"""ConvRot's regular Hadamard matrix of four rows; larger ones are its Kronecker powers (arXiv 2512.03673)."""
Tensors = dict[str, torch.Tensor]


def in_one_form(tensors: Tensors, header: WeightHeader) -> Tensors:
    """The tensors of the file with ``header``. Raises WeightsMissing if the parts of a layer do not fit."""
    found = dict(tensors)
    try:
        for name in [name for name in tensors if name + NF4_NOTE in tensors]:
            unpack_nf4(found, name, header.notes[name + NF4_NOTE])
        for name in [name for name in tensors if name.endswith(INT8_SCALE)]:
            stem = name.removesuffix(INT8_SCALE)
            found[f"{stem}.{SCALES[0]}"] = found.pop(name).to(torch.float32).view(-1, 1) / 127
            found.pop(f"{stem}.weight_format", None)
        for layer, note in comfy_notes(header).items():
            for stem in [stem for stem in layer_names(layer, found) if f"{stem}.weight" in found]:
                mark_comfy(found, stem, note)
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise damaged(header.path, f"its quantized layers do not fit together: {error!r}") from error
    return found


def layer_names(layer: str, tensors: Mapping[str, Any]) -> list[str]:
    """The layer in a file whose metadata may leave out the prefix of its names."""
    if f"{layer}.weight" in tensors:
        return [layer]
    ending = f".{layer}.weight"
    return [name.removesuffix(".weight") for name in tensors if name.endswith(ending)]


def unpack_nf4(found: Tensors, name: str, note: Mapping[str, Any]) -> None:
    """One weight of bitsandbytes: its magnitudes as a scale, and everything else that belongs to it taken away."""
    weight = found[name]
    parts = {key: found.pop(key) for key in [key for key in found if key.startswith(f"{name}.")]}
    shape, block = torch.Size(note["shape"]), int(note["blocksize"])
    stem = name.removesuffix("weight")
    rows, columns = (shape[0], shape[1]) if len(shape) == 2 else (1, shape.numel())
    if weight.is_meta:
        found[name] = torch.empty(shape, dtype=torch.uint8, device="meta")
        found[f"{stem}{SCALES[0]}"] = torch.empty((rows, 1), device="meta")
        return
    levels = parts[f"{name}.quant_map"].to(torch.float32)
    if not torch.allclose(levels, torch.tensor(NF4_LEVELS), atol=1e-3):
        raise ValueError(f"{name} has other levels than NF4")
    largest = parts[f"{name}.absmax"]
    if largest.dtype == torch.uint8:  # the magnitudes are quantized too
        table, inner = parts[f"{name}.nested_quant_map"], parts[f"{name}.nested_absmax"]
        repeats = int(note["nested_blocksize"])
        outer = inner.repeat_interleave(repeats)[: largest.numel()]
        largest = table[largest.long()] * outer + float(note["nested_offset"])
    if block % NF4_BLOCK:
        raise ValueError(f"{name} has blocks of {block} values")
    largest = largest.to(torch.float32).flatten().repeat_interleave(block // NF4_BLOCK)
    if len(shape) == 2 and columns % block == 0:
        found[name] = weight.reshape(rows, columns // 2)
        found[f"{stem}{SCALES[0]}"] = largest.view(rows, -1)
        return
    largest = largest[: -(-shape.numel() // NF4_BLOCK)]
    padded = torch.nn.functional.pad(weight.flatten(), (0, largest.numel() * NF4_BLOCK // 2 - weight.numel()))
    found[name] = from_nf4(padded, largest, shape, torch.float32)


def mark_comfy(found: Tensors, stem: str, note: Mapping[str, Any]) -> None:
    """One layer that ComfyUI quantized: fp8 as fp8, a scale per row as a column, and the rotation beside it."""
    weight = found[f"{stem}.weight"]
    if note.get("format") in PLAIN_FP8 and weight.dtype == torch.uint8:
        weight = weight.view(getattr(torch, str(note["format"])))
        found[f"{stem}.weight"] = weight
    for scale in SCALES:
        value = found.get(f"{stem}.{scale}")
        if value is not None and value.dim() == 1 and value.numel() == weight.shape[0] > 1:
            found[f"{stem}.{scale}"] = value.view(-1, *[1] * (weight.dim() - 1))
    if note.get("convrot"):
        size = int(note.get("convrot_groupsize", 256))
        if weight.dim() != 2 or weight.shape[1] % size:
            raise ValueError(f"{stem} has {weight.shape[-1]} inputs, not a multiple of {size}")
        found[f"{stem}.{ROTATION}"] = torch.tensor([size], device=weight.device)
        if weight.is_meta:  # it is rotated back when it is read
            found[f"{stem}.weight"] = torch.empty(weight.shape, dtype=torch.bfloat16, device="meta")


def rotated_back(weight: torch.Tensor, size: int) -> torch.Tensor:
    """A decoded weight (rows, columns) without ConvRot's rotation of each ``size`` inputs."""
    groups = weight.to(torch.float32).view(weight.shape[0], -1, size)
    return (groups @ hadamard(size).to(weight.device)).view_as(weight)


@cache
def hadamard(size: int) -> torch.Tensor:
    """The rotation (size, size): symmetric, and its own inverse. Sizes are powers of four."""
    with torch.inference_mode(False):
        seed = torch.tensor(SEED, dtype=torch.float32)
        matrix = seed
        while matrix.shape[0] < size:
            matrix = torch.kron(matrix, seed)
        return matrix / size**0.5
