"""Weights that are stored in a type other than the compute type: fp8, int8, nf4, or bf16 for computing in fp32.

A layer keeps its weight as ``stored`` (and ``scale``) and builds the weight to compute with in each call. It never
writes to what is stored, so these weights can be moved, streamed, pinned and mapped from files like any others.
diffusers' layerwise casting (``apply_layerwise_casting``) casts a layer's weights up and down in place, which rules all
of that out. Results equal its results bit for bit, except that biases keep full precision here. bitsandbytes keeps part
of a 4-bit weight outside its parameters and is only fast on CUDA. NF4 is a table of 16 numbers (QLoRA, appendix E).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal, cast

import torch
from torch.nn import functional

from ...planning.costs import PIECE_VALUES
from ...planning.records import ComputeType, StorageType
from ..dtypes import DTYPES

StoredType = Literal["fp8", "int8", "nf4", "fp32", "bf16", "fp16"]
NF4_BLOCK = 64
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution, scaled to [-1, 1] (Dettmers et al. 2023, appendix E)."""


class StoredWeight:
    """Mixin for a layer that builds its ``weight`` from ``stored`` on each access. :func:`store_weight` gives a layer
    this class. ``compute_dtype`` is the type of the built weight."""

    stored: torch.nn.Parameter
    scale: torch.nn.Parameter | None
    bias: torch.nn.Parameter | None
    storage: StoredType
    compute_dtype: torch.dtype
    weight_shape: torch.Size

    @property
    def weight(self) -> torch.Tensor:
        """The weight that the layer computes with: a new tensor each time."""
        if self.storage == "nf4":
            assert self.scale is not None
            return from_nf4(self.stored, self.scale, self.weight_shape, self.compute_dtype)
        if self.scale is None:
            return self.stored.to(self.compute_dtype)
        return unpacked(self.stored, self.scale, self.compute_dtype)

    @property
    def scale_outputs(self) -> bool:
        """Whether to apply the scale to the output instead of the weight. The result is the same for less work, and
        int8 values are exact in every type. Not in fp16, where the unscaled output could overflow."""
        return self.storage != "nf4" and self.scale is not None and self.compute_dtype is not torch.float16


class StoredLinear(StoredWeight, torch.nn.Linear):  # pyright: ignore[reportIncompatibleVariableOverride]
    """``torch.nn.Linear`` with a stored weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.scale_outputs:
            return functional.linear(input, self.weight, self.bias)
        assert self.scale is not None
        output = functional.linear(input, self.stored.to(self.compute_dtype)) * self.scale.flatten()
        output = output.to(self.compute_dtype)
        return output if self.bias is None else output + self.bias


class StoredConv2d(StoredWeight, torch.nn.Conv2d):  # pyright: ignore[reportIncompatibleVariableOverride]
    """``torch.nn.Conv2d`` with a stored weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(input, self.weight, self.bias)


class GGUFWeight:
    """Mixin for a layer that keeps its weight encoded as in the GGUF file and decodes it in each call.

    diffusers' GGUFLinear does not work here: its ``weight`` is the encoded bytes, and T5 reads the compute type from
    its weights.
    """

    stored: torch.nn.Parameter
    bias: torch.nn.Parameter | None
    compute_dtype: torch.dtype

    @property
    def weight(self) -> torch.Tensor:
        """The weight that the layer computes with: a new tensor each time."""
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        return dequantize_gguf_tensor(self.stored).to(self.compute_dtype)


class CodedLinear(GGUFWeight, torch.nn.Linear):  # pyright: ignore[reportIncompatibleVariableOverride]
    """``torch.nn.Linear`` with a weight from a GGUF file."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.linear(input, self.weight, self.bias)


def store_gguf(layer: torch.nn.Module, weight: torch.Tensor, compute: torch.dtype) -> None:
    """Make the linear ``layer`` keep ``weight``, a GGUFParameter."""
    del layer._parameters["weight"]
    layer.__class__ = CodedLinear
    kept = cast(GGUFWeight, layer)
    kept.compute_dtype = compute
    kept.stored = cast(torch.nn.Parameter, weight)


def stored_type(storage: StorageType, compute: ComputeType) -> StoredType | None:
    """How layers store their weights; None if they keep them in the compute type or as GGUF."""
    return None if storage in (compute, "gguf") else cast(StoredType, storage)


def storable_layers(
    component: torch.nn.Module, blocks: tuple[str, ...]
) -> Iterator[tuple[str, torch.nn.Linear | torch.nn.Conv2d]]:
    """The layers of ``component`` whose weights may be stored in fewer bits, with their names.

    Only layers inside blocks qualify; their names begin with one of ``blocks``. The layers outside (embeddings, the
    first and the last layer) are 1 % of the weights and affect quality most. T5 also takes the type of its first
    parameter, the embedding, as its own.
    """
    for name, module in component.named_modules():
        if type(module) in (torch.nn.Linear, torch.nn.Conv2d) and name.startswith(blocks):
            yield name, cast("torch.nn.Linear | torch.nn.Conv2d", module)


def store_weight(
    layer: torch.nn.Linear | torch.nn.Conv2d,
    weight: torch.Tensor,
    storage: StoredType,
    compute: torch.dtype,
    scale: torch.Tensor | None = None,
) -> None:
    """Make ``layer`` keep ``weight`` in ``storage``.

    A ``weight`` with a ``scale`` (from a quantized file) stays unchanged if its type is ``storage``.
    """
    shape = layer.weight.shape
    if storage == "fp8":
        stored = weight.to(torch.float8_e4m3fn)
    elif storage in DTYPES:
        stored, scale = (weight if scale is None else unscaled(weight, scale)).to(DTYPES[storage]), None
    elif storage == "int8" and weight.dtype == torch.int8 and scale is not None:
        rows = (weight.shape[0], *[1] * (weight.dim() - 1))
        stored, scale = weight, scale.expand(rows) if scale.numel() == 1 else scale.reshape(rows)
    elif storage == "nf4" and weight.dtype == torch.uint8 and scale is not None:
        stored, scale = weight.flatten(), scale.flatten()
    elif storage == "int8":
        stored, scale = to_int8(weight if scale is None else unscaled(weight, scale))
    else:
        stored, scale = to_nf4(weight if scale is None else unscaled(weight, scale))
    del layer._parameters["weight"]
    layer.__class__ = StoredLinear if isinstance(layer, torch.nn.Linear) else StoredConv2d  # pyright: ignore[reportAttributeAccessIssue]
    kept = cast(StoredWeight, layer)
    kept.storage, kept.compute_dtype, kept.weight_shape = storage, compute, shape
    kept.stored = torch.nn.Parameter(stored, requires_grad=False)
    kept.scale = None if scale is None else torch.nn.Parameter(scale.to(torch.float32), requires_grad=False)


def unscaled(weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """The values of a weight in fp32, with its scale applied."""
    return weight.to(torch.float32) if scale is None else weight.to(torch.float32) * scale.to(torch.float32)


def in_pieces(
    convert: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], weight: torch.Tensor, values: int
) -> tuple[torch.Tensor, ...]:
    """``convert`` of ``weight``, about PIECE_VALUES at a time: the values between take several times its memory.

    ``values``: how many a row has. Every row is converted by itself, so the pieces give the same bits.
    """
    rows = max(1, PIECE_VALUES // max(values, 1))
    if len(weight) <= rows:
        return convert(weight)
    parts = [convert(piece) for piece in weight.split(rows)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def unpacked(stored: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``stored`` times ``scale`` (of all, or of each row), in ``dtype``. Multiplied in fp32, in pieces of rows."""
    rows = max(1, PIECE_VALUES // max(stored[:1].numel(), 1))
    if len(stored) <= rows:
        return stored.to(torch.float32).mul_(scale).to(dtype)
    weight = torch.empty(stored.shape, dtype=dtype, device=stored.device)
    for start in range(0, len(stored), rows):
        part = slice(start, start + rows)
        weight[part] = (
            stored[part].to(torch.float32).mul_(scale[part] if len(scale.shape) and len(scale) > 1 else scale)
        )
    return weight


def to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``weight`` (rows first, any type) as int8, and a scale per row, (rows, 1, ...), which broadcasts over it."""
    stored, scale = in_pieces(rows_to_int8, weight, weight[:1].numel())
    return stored, scale


def rows_to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a weight."""
    weight = weight.to(torch.float32)
    largest = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True)
    scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / scale).round().to(torch.int8), scale


def to_nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``weight`` as two 4-bit codes per byte, the first in the high half, and the largest magnitude per 64 values."""
    values = weight.flatten()
    if missing := -weight.numel() % NF4_BLOCK:
        values = functional.pad(values, (0, missing))
    stored, scale = in_pieces(blocks_to_nf4, values.view(-1, NF4_BLOCK), NF4_BLOCK)
    return stored, scale


def blocks_to_nf4(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of 64 values."""
    values = values.to(torch.float32)
    largest = values.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    levels = torch.tensor(NF4_LEVELS, device=values.device)
    codes = torch.bucketize(values / largest, (levels[1:] + levels[:-1]) / 2).to(torch.uint8).view(-1, 2)
    return codes[:, 0] << 4 | codes[:, 1], largest.flatten()


def from_nf4(stored: torch.Tensor, scale: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Decode what :func:`to_nf4` returned, as a weight of ``shape``."""
    blocks = max(1, PIECE_VALUES // NF4_BLOCK)
    if len(scale) <= blocks:
        values = nf4_values(stored, scale).to(dtype).flatten()
    else:
        values = torch.empty(2 * len(stored), dtype=dtype, device=stored.device)
        bytes_, numbers = blocks * NF4_BLOCK // 2, blocks * NF4_BLOCK
        for index in range(-(-len(scale) // blocks)):
            part = nf4_values(
                stored[index * bytes_ : (index + 1) * bytes_], scale[index * blocks : (index + 1) * blocks]
            )
            values[index * numbers : index * numbers + part.numel()] = part.flatten()
    return values[: shape.numel()].view(shape)


def nf4_values(stored: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Blocks of 64 values, (blocks, 64), in fp32."""
    pairs = nf4_pairs(stored.device).index_select(0, stored.to(torch.int32))
    return pairs.view(-1, NF4_BLOCK).mul_(scale.unsqueeze(1))


@cache
def nf4_pairs(device: torch.device) -> torch.Tensor:
    """The two values that each byte encodes: (256, 2)."""
    with torch.inference_mode(False):
        levels = torch.tensor(NF4_LEVELS, device=device)
        high, low = torch.meshgrid(levels, levels, indexing="ij")
        return torch.stack([high.flatten(), low.flatten()], dim=1)
