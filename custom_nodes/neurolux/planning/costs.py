"""The cost model: bytes of weights by type, bytes of activations, floating-point operations. Pure; all its constants
are defined here.

The activation sizes come from running the real architectures at full width on torch's meta device and adding up the
tensors that are alive at the same time (fused attention, as on a GPU). tests/pack/loading/test_shapes.py counts them
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .records import ComponentShape, ComputeType, FamilyCosts, Machine, StorageType, Workload

WEIGHT_BYTES: dict[StorageType, float] = {
    "fp32": 4,
    "bf16": 2,
    "fp16": 2,
    "fp8": 1,
    "int8": 1,
    "nf4": 0.5625,  # half a byte, plus an fp32 scale per 64 weights
    "gguf": 0.6,  # Q4_K, if the size of the file is unknown
}
LARGE_BLOCK = 100_000_000
"""A block with more parameters than this is a transformer block; a smaller one belongs to a UNet."""
KEPT_SHARE = 0.002
"""Share of a block's weights that stay in the compute type: norms, biases and scales (quantize.py)."""
PIECE_VALUES = 1 << 23
"""A weight with more values than this is quantized and unpacked in pieces (quantize.py)."""
UNPACKING_BYTES: dict[StorageType, int] = {"int8": 8, "nf4": 10}
"""Bytes between the stored and the computed value, for each value of a piece; other types are cast directly."""
QUANTIZING_BYTES: dict[StorageType, int] = {"int8": 16, "nf4": 24}
"""The same while weights are quantized."""
SPILL_BYTES = 1_000_000_000
"""Converted weights that RAM does not keep are written to a file in portions of this size."""
COMPUTE_BYTES: dict[ComputeType, int] = {"fp32": 4, "bf16": 2, "fp16": 2}

MARGIN = 1.2
"""Factor on the counted activations: covers the allocator's rounding and the workspaces of library kernels."""
CONVOLUTION_BYTES = 500_000_000
"""Workspace of the decoder's convolutions. With it, a 1024x1024 decode in 16 bits takes 2.4 GB, the peak that diffusers
measured for FLUX with at most one layer's weights on the device (diffusers PR 11682)."""
TILE = 512
"""Side of a VAE tile in pixels; 64 in the latent. diffusers only tiles an image that is larger than its
``tile_sample_min_size``. At its default of 1024, a 1024x1024 image would be decoded whole."""
RESERVE_BYTES = 250_000_000
RESERVE_SHARE = 0.03
"""Device memory besides weights and activations: a fixed part for matrix workspaces, and a share for fragmentation."""
CONTEXT_BYTES = 500_000_000
"""What a CUDA context takes of a card before anything is loaded. A measured free size already excludes it."""
SYSTEM_RAM_BYTES = 2_000_000_000
"""RAM that the operating system and a desktop use. A measured free size already excludes it."""
RAM_RESERVE_BYTES = 500_000_000
RAM_RESERVE_SHARE = 0.03
"""RAM besides the weights: a fixed part for file buffers and for one tensor in two types during loading, and a
share of the rest."""
PAGEABLE_SHARE = 0.4
"""Rate of copies from unpinned memory, as a share of the pinned rate."""
MAPPED_SHARE = 0.6
"""Rate of copies from mapped files that are already in the page cache, as a share of the pinned rate. They go through a
pinned buffer, so each byte moves twice."""
CACHE_SHARE = 0.8
"""Share of free RAM in which mapped files can be expected to stay cached."""
LAYERWISE_SHARE = 0.5
"""Rate of layer-by-layer copies, as a share of the rate for whole blocks. Many of these copies are small."""
PINNED_SHARE = 0.8
"""Share of free RAM that may be pinned."""
COMPUTE_RATES = {"cuda": 40e12, "cpu": 0.3e12}
"""FLOP/s of a device of which nothing is known: about what an RTX 3090 and a desktop CPU achieve."""
FP32_COMPUTE_RATE = 10e12
"""The same of a card in fp32, without its tensor cores."""
OTHER_COMPUTE_RATE = 10e12


def block_bytes(shape: ComponentShape, storage: StorageType, compute: ComputeType) -> tuple[int, ...]:
    """Bytes of each block in ``storage``."""
    if shape.stored_bytes is not None and storage == shape.stored:
        each = shape.stored_bytes / max(shape.parameters, 1)
    elif storage == compute:
        each = WEIGHT_BYTES[storage]
    else:
        each = WEIGHT_BYTES[storage] + KEPT_SHARE * COMPUTE_BYTES[compute]
    beside = shape.lora_bytes / max(sum(shape.blocks), 1)
    return tuple(round(block * (each + beside)) for block in shape.blocks)


def weight_bytes(shape: ComponentShape, storage: StorageType, compute: ComputeType) -> int:
    """Bytes of a component's weights in ``storage``. Weights outside blocks are in the compute type."""
    if shape.stored_bytes is not None and storage == shape.stored:
        return shape.stored_bytes + shape.lora_bytes
    unsplit = 0 if shape.blocks else shape.lora_bytes
    return sum(block_bytes(shape, storage, compute)) + shape.outside_blocks * COMPUTE_BYTES[compute] + unsplit


def largest_layer(shape: ComponentShape, *, embeds: bool = True) -> int:
    """An upper bound for the parameters of the largest single layer. ``embeds``: whether the component embeds tokens.

    A transformer's block has at least three large layers; a UNet's resnet has two. Outside blocks, the embedding is the
    largest layer. In a component that is not split it is the token embedding, 0.32 of CLIP-L, or a convolution, 0.03 of
    a VAE.
    """
    if not shape.blocks:
        return round(shape.parameters * (0.35 if embeds else 0.05))
    block = max(shape.blocks)
    outside = shape.outside_blocks if shape.largest_outside is None else shape.largest_outside
    return max(round(block * (0.34 if block > LARGE_BLOCK else 0.7)), shape.largest_inside, outside)


def largest_streamed(shape: ComponentShape, *, embeds: bool) -> int:
    """The same of those layers that are streamed one by one. Embeddings of tokens are not: they stay."""
    if not shape.blocks or not embeds:
        return largest_layer(shape, embeds=embeds)
    return largest_layer(replace(shape, largest_outside=0))


def embedding_bytes(shape: ComponentShape, compute: ComputeType) -> int:
    """An upper bound for a text encoder's embeddings, which stay on the device even where every layer is streamed."""
    values = shape.outside_blocks if shape.blocks else round(shape.parameters * 0.35)
    return values * COMPUTE_BYTES[compute]


def encode_bytes(family: FamilyCosts, compute: ComputeType = "bf16") -> int:
    """Working memory for encoding one prompt, in bytes."""
    return round(family.encode_values * COMPUTE_BYTES[compute] * MARGIN)


def sample_bytes(
    family: FamilyCosts, width: int, height: int, compute: ComputeType = "bf16", *, passes: int = 1, frames: int = 1
) -> int:
    """Working memory for one denoising step, in bytes.

    ``passes``: 2 with classifier-free guidance, which runs both prompts at once in most families. ``frames``: of a
    video.
    """
    one = family.frame_values if frames > 1 and family.frame_values is not None else family.sample_values
    values = one(width, height) * (passes if family.guides_at_once else 1) * frames
    return round(values * COMPUTE_BYTES[compute] * MARGIN)


def widening_bytes(shape: ComponentShape, storage: StorageType, compute: ComputeType) -> int:
    """Bytes of the largest layer's weights in the compute type, and what unpacking them takes; 0 for the same type."""
    if storage == compute:
        return 0
    layer = largest_layer(shape)
    return layer * COMPUTE_BYTES[compute] + min(layer, PIECE_VALUES) * UNPACKING_BYTES.get(storage, 0)


def quantizing_bytes(shape: ComponentShape, storage: StorageType) -> int:
    """Bytes of the device that quantizing the largest layer takes while a component is loaded."""
    layer, source = largest_layer(shape), WEIGHT_BYTES[shape.stored or "bf16"]
    return round(layer * (source + WEIGHT_BYTES[storage])) + min(layer, PIECE_VALUES) * QUANTIZING_BYTES.get(storage, 0)


def encode_image_bytes(
    family: FamilyCosts, width: int, height: int, compute: ComputeType = "bf16", *, tile: int | None = None
) -> int:
    """Working memory for encoding one image with the VAE, in bytes."""
    pixels = width * height if tile is None else min(width, tile) * min(height, tile)
    workspace = CONVOLUTION_BYTES * min(1.0, pixels / 1024**2)
    widened = family.vae.encoder_parameters * COMPUTE_BYTES[compute] if compute == "fp32" else 0
    return round(pixels * family.vae.encode_values * COMPUTE_BYTES[compute] * MARGIN + workspace) + widened


def control_bytes(shape: ComponentShape, width: int, height: int, compute: ComputeType = "bf16") -> int:
    """Bytes that a ControlNet passes to the denoiser in each step. They stay allocated until the denoiser has run."""
    return round(shape.values_per_token * width * height / 256 * COMPUTE_BYTES[compute])


def decode_bytes(
    family: FamilyCosts, width: int, height: int, compute: ComputeType = "bf16", *, tile: int | None = None
) -> int:
    """Working memory for decoding one image, whole or in tiles of ``tile`` pixels a side, in bytes."""
    pixels = width * height if tile is None else min(width, tile) * min(height, tile)
    workspace = CONVOLUTION_BYTES * min(1.0, pixels / 1024**2)
    finished = 0 if tile is None else 2 * 3 * width * height  # the tiles, and the image that they are blended into
    return round((pixels * family.vae.decode_values + finished) * COMPUTE_BYTES[compute] * MARGIN + workspace)


def step_flops(family: FamilyCosts, shape: ComponentShape, workload: Workload) -> float:
    """Floating-point operations of one denoising step."""
    one = family.step_operations(shape.parameters, workload.width, workload.attended_height)
    return one * workload.passes * workload.frames


def compute_rate(machine: Machine, compute: ComputeType = "bf16") -> float:
    """FLOP/s of the machine in ``compute``: its own figure, or the default for its kind of device."""
    if compute == "fp32" and machine.own_memory:
        return machine.fp32_rate or FP32_COMPUTE_RATE
    return machine.compute_rate or COMPUTE_RATES.get(machine.device, OTHER_COMPUTE_RATE)


def spread(sizes: Sequence[int], budget: float) -> set[int]:
    """Choose which of ``sizes`` to keep within ``budget``, so that the others are spread evenly between them.

    Returns the indices to keep. While a kept block computes, the bus is free for the next block that is not kept.
    """
    total = sum(sizes)
    if budget >= total:
        return set(range(len(sizes)))
    kept: set[int] = set()
    used, seen = 0, 0
    for index, size in enumerate(sizes):
        seen += size
        if used + size <= budget * seen / total:
            kept.add(index)
            used += size
    for index, size in enumerate(sizes):
        if index not in kept and used + size <= budget:
            kept.add(index)
            used += size
    return kept
