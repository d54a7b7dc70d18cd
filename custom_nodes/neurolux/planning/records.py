"""The records that a memory plan is made of: what goes in (shapes, machine, image) and what comes out (the plan).

Pure: neither torch nor ComfyUI, so that a plan for any card can be made anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

StorageType = Literal["fp32", "bf16", "fp16", "fp8", "int8", "nf4", "gguf"]
"""How weights lie in memory."""
ComputeType = Literal["fp32", "bf16", "fp16"]
OffloadMode = Literal["none", "model", "stream", "sequential", "disk"]
PlacementKind = Literal["resident", "stage", "stream", "sequential", "disk"]
OFFLOAD_CHOICES = ("auto", "none", "model", "stream", "sequential", "disk")
PRECISION_CHOICES = ("auto", "bf16", "fp16", "fp32", "fp8", "int8", "nf4", "as-is")
CONTROLNET = "controlnet"
"""What the names of components begin with that guide the denoiser."""
ACCELERATORS = ("cuda", "xpu", "npu")
"""Devices with memory of their own. On a CPU and on MPS weights and activations share one memory."""


@dataclass(frozen=True)
class ComponentShape:
    """One component of a pipeline, as far as memory is concerned."""

    parameters: int
    blocks: tuple[int, ...] = ()
    """Parameters of each block that can be streamed, in order of use; empty where the component is not split."""
    stored: StorageType | None = None
    """How the files store it; None where that is not known."""
    stored_bytes: int | None = None
    """Bytes on disk, where the type alone does not tell (GGUF, mixed types)."""
    lora_bytes: int = 0
    """Of LoRA layers beside its own weights, spread over its blocks, in a type of their own."""
    values_per_token: int = 0
    """Of a ControlNet: values that it hands to the denoiser in each step for 16x16 pixels."""
    needs_vae: bool = False
    """Of a ControlNet: whether it sees its image as a latent, so that the VAE works in its stage."""

    @property
    def outside_blocks(self) -> int:
        """Parameters that belong to no block: embeddings, the last norm."""
        return self.parameters - sum(self.blocks)


@dataclass(frozen=True)
class FamilyCosts:
    """What a plan must know of a family of models."""

    denoiser: str
    """The component that denoises."""
    sample_values: Callable[[int, int], float]
    """(width, height) -> bytes of activations of one step of one image, for each byte of the number format."""
    step_operations: Callable[[int, int, int], float]
    """(the denoiser's parameters, width, height) -> floating-point operations of one step of one image."""
    compressible: frozenset[str]
    """Components that may be stored in fewer bits: the denoiser and large text encoders. CLIP and a VAE are small and
    suffer most."""
    overflows_fp16: frozenset[str] = frozenset()
    """Components that compute in fp32 where the others compute in fp16."""
    fp16_without_bf16: bool = False
    """Whether a card that does not compute in bf16 computes in fp16, which the family's denoiser bears."""


@dataclass(frozen=True)
class Machine:
    """What a plan has to live with. Bytes, bytes a second, and what the device computes well."""

    device: str
    free_vram: int
    """Bytes that can be had on the device: free now, or held by what the manager can evict. 0 on a CPU."""
    free_ram: int
    bf16: bool
    fp16: bool
    fp8: bool = True
    transfer_rate: float = 12.5e9
    """From pinned RAM to the device: PCIe 3 x16 unless measured."""
    disk_rate: float = 1.5e9
    compute_rate: float | None = None
    """FLOP/s that a denoiser achieves; None for the cautious figure of the device's class (costs.py)."""

    @property
    def own_memory(self) -> bool:
        """Whether the device has memory of its own, so that weights can be elsewhere."""
        return self.device in ACCELERATORS


@dataclass(frozen=True)
class Workload:
    """What is asked for: pixels, images (sampled and decoded one after the other), denoising steps of each."""

    width: int
    height: int
    count: int = 1
    steps: int = 4


@dataclass(frozen=True)
class ComponentPlan:
    """Where one component's weights live and in what type."""

    storage: StorageType
    compute: ComputeType
    placement: PlacementKind
    """resident: stays on the device. stage: only while at work. stream, disk: ``resident_blocks`` blocks stay, spread
    evenly over the order of use; the others come ahead of use, two at a time, from RAM or from disk. sequential: one
    layer at a time."""
    resident_blocks: int
    """For stream and disk: how many blocks stay; all blocks otherwise."""
    bytes: int
    """Of all its weights in this storage."""
    blocks: int = 0
    """How many blocks it has."""


@dataclass(frozen=True)
class Plan:
    """What lives where, in what type, what that takes, and why."""

    offload: OffloadMode
    precision: str
    components: Mapping[str, ComponentPlan]
    vae_tile: int | None
    """Side of a decoding tile in pixels; None decodes the image whole."""
    vae_slicing: bool
    """Whether the images of a batch are decoded one after the other."""
    peak_vram: int
    peak_ram: int
    pinned_ram: int
    transfer_seconds: float
    """Time of one request, all its images and a new prompt, that goes into transfers which computing cannot hide."""
    fits: bool
    reasons: tuple[str, ...]
    compute_seconds: float = 0.0
    """Roughly what the denoising steps compute for, by ``Machine.compute_rate`` or the figure of the device's class."""
    copies_in_ram: bool = True
    """Whether RAM keeps a copy of what is resident on the device (it can then leave without being copied back);
    False where RAM is too small for that and weights only pass through it."""


def gigabytes(size: float) -> str:
    """Bytes for a reader."""
    return f"{size / 1e9:.1f} GB" if size >= 950_000_000 else f"{size / 1e6:.0f} MB"
