"""What weights and work cost: bytes of weights by type, room for activations, operations. Pure, and the one home of
these constants.

The activations were counted by running the real architectures at full width on torch's meta device and adding up what
lives at once (fused attention, as on a GPU); tests/pack/test_shapes.py counts them again.
"""

from __future__ import annotations

from collections.abc import Sequence

from .records import ComponentShape, ComputeType, FamilyCosts, Machine, StorageType, Workload

WEIGHT_BYTES: dict[StorageType, float] = {
    "fp32": 4,
    "bf16": 2,
    "fp16": 2,
    "fp8": 1,
    "int8": 1,
    "nf4": 0.5625,  # half a byte, and a scale in fp32 per 64 weights
    "gguf": 0.6,  # Q4_K, where the file's own size is not known
}
LARGE_BLOCK = 100_000_000
"""Parameters of what is a transformer block and no part of a UNet."""
KEPT_SHARE = 0.002
"""Of the weights in blocks: norms, biases and scales, which stay in the type that is computed in (quantize.py)."""
COMPUTE_BYTES: dict[ComputeType, int] = {"fp32": 4, "bf16": 2, "fp16": 2}

MARGIN = 1.2
"""Over what was counted: the allocator's rounding, and what a library's kernels take."""
ENCODE_BYTES = 55_000_000
"""Activations of 512 tokens through T5-XXL, per byte of the number format. CLIP needs less."""
DECODE_BYTES_PER_PIXEL = 768
"""Activations of the VAE's decoder per pixel and byte of the number format."""
CONVOLUTION_BYTES = 500_000_000
"""Workspace of the decoder's convolutions. With it a 1024 decode in 16 bit comes to the 2.4 GB that diffusers measured
as FLUX's peak where no more than a layer's weights are on the device (its PR 11682)."""
TILE = 512
"""Side of a VAE tile in pixels, 64 in the latent. diffusers tiles an image only where it is larger than its
``tile_sample_min_size``, 1024 unless set: with that a 1024 image would be decoded whole."""
RESERVE_BYTES = 250_000_000
RESERVE_SHARE = 0.03
"""Memory of the device beside weights and activations: matrix workspaces; and fragmentation, a share of the rest."""
CONTEXT_BYTES = 500_000_000
"""What a CUDA context takes of a card before anything is loaded; free memory that is measured has it off already."""
SYSTEM_RAM_BYTES = 2_000_000_000
"""What the system and a desktop take of RAM; free RAM that is measured has it off already."""
RAM_RESERVE_BYTES = 500_000_000
RAM_RESERVE_SHARE = 0.03
"""RAM beside the weights: file buffers, one tensor in two types while it is loaded; and a share of the rest."""
PAGEABLE_SHARE = 0.4
"""Rate of copies from unpinned memory, as a share of the pinned rate."""
MAPPED_SHARE = 0.6
"""Rate of copies from mapped files that RAM has read already: over a pinned buffer, so each byte moves twice."""
CACHE_SHARE = 0.8
"""Share of free RAM in which mapped files can be expected to stay."""
LAYERWISE_SHARE = 0.5
"""Rate of copies layer by layer, as a share of that of whole blocks: many are small."""
PINNED_SHARE = 0.8
"""Share of free RAM that may be pinned."""
COMPUTE_RATES = {"cuda": 40e12, "cpu": 0.3e12}
"""FLOP/s where the device is not measured: about what an RTX 3090 achieves, and a desktop's CPU. It decides only
how much of the streaming counts as hidden. A slower card hides more; a faster one says so in its Machine."""
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
    """Bytes of a component's weights in ``storage``; outside of blocks they are in the type that is computed in."""
    if shape.stored_bytes is not None and storage == shape.stored:
        return shape.stored_bytes + shape.lora_bytes
    unsplit = 0 if shape.blocks else shape.lora_bytes
    return sum(block_bytes(shape, storage, compute)) + shape.outside_blocks * COMPUTE_BYTES[compute] + unsplit


def largest_layer(shape: ComponentShape) -> int:
    """Parameters of the largest single layer, at most.

    A block of FLUX or T5 has at least three large layers; a UNet's resnet has two. Outside of blocks the largest is the
    embedding. Of a component that is not split it is the token embedding, 0.32 of CLIP-L.
    """
    if not shape.blocks:
        return round(shape.parameters * 0.35)
    block = max(shape.blocks)
    return max(round(block * (0.34 if block > LARGE_BLOCK else 0.7)), shape.outside_blocks)


def encode_bytes(compute: ComputeType = "bf16") -> int:
    """Working room of encoding one prompt."""
    return round(ENCODE_BYTES * COMPUTE_BYTES[compute] * MARGIN)


def sample_bytes(family: FamilyCosts, width: int, height: int, compute: ComputeType = "bf16") -> int:
    """Working memory of one denoising step of one image."""
    return round(family.sample_values(width, height) * COMPUTE_BYTES[compute] * MARGIN)


def control_bytes(shape: ComponentShape, width: int, height: int, compute: ComputeType = "bf16") -> int:
    """What a ControlNet hands to the denoiser in each step: it lies there until the denoiser has used it."""
    return round(shape.values_per_token * width * height / 256 * COMPUTE_BYTES[compute])


def decode_bytes(width: int, height: int, compute: ComputeType = "bf16", *, tile: int | None = None) -> int:
    """Working room of decoding one image, whole or in tiles of ``tile`` pixels a side."""
    pixels = width * height if tile is None else min(width, tile) * min(height, tile)
    workspace = CONVOLUTION_BYTES * min(1.0, pixels / 1024**2)
    finished = 0 if tile is None else 2 * 3 * width * height  # the tiles, and the image made of them
    return round((pixels * DECODE_BYTES_PER_PIXEL + finished) * COMPUTE_BYTES[compute] * MARGIN + workspace)


def step_flops(family: FamilyCosts, shape: ComponentShape, workload: Workload) -> float:
    """Operations of one denoising step of one image."""
    return family.step_operations(shape.parameters, workload.width, workload.height)


def compute_rate(machine: Machine) -> float:
    """FLOP/s of the machine, or of its class."""
    return machine.compute_rate or COMPUTE_RATES.get(machine.device, OTHER_COMPUTE_RATE)


def spread(sizes: Sequence[int], budget: float) -> set[int]:
    """Which of ``sizes`` to keep so that they fit into ``budget`` and those left out lie evenly between them.

    While a kept block computes, the bus is free for the next one that is left out.
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
