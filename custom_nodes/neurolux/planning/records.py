"""The records of memory planning: its input (shapes, machine, workload) and its output (the plan).

Pure, without torch or ComfyUI, so a plan for any card can be made on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

StorageType = Literal["fp32", "bf16", "fp16", "fp8", "int8", "nf4", "gguf"]
"""How weights are stored in memory."""
ComputeType = Literal["fp32", "bf16", "fp16"]
OffloadMode = Literal["none", "model", "stream", "sequential", "disk"]
PlacementKind = Literal["resident", "stage", "stream", "sequential", "disk"]
OFFLOAD_CHOICES = ("auto", "none", "model", "stream", "sequential", "disk")
PRECISION_CHOICES = ("auto", "bf16", "fp16", "fp32", "fp8", "int8", "nf4", "as-is")
CONTROLNET = "controlnet"
"""Prefix of the component names of ControlNets."""
MOTION = "motion"
"""The component name of a motion adapter."""
BESIDE = (CONTROLNET, MOTION)
"""Prefixes of the names of components that belong to no pipeline and work beside its denoiser."""
ACCELERATORS = ("cuda", "xpu", "npu")
"""Devices with memory of their own. On a CPU and on MPS, weights and activations share RAM."""


@dataclass(frozen=True)
class ComponentShape:
    """The memory-related facts about one component of a pipeline."""

    parameters: int
    blocks: tuple[int, ...] = ()
    """Parameters of each block that can be streamed, in order of use; empty if the component cannot be split."""
    stored: StorageType | None = None
    """The type in the files; None if unknown."""
    stored_bytes: int | None = None
    """Bytes on disk, if they do not follow from the type (GGUF, mixed types)."""
    lora_bytes: int = 0
    """Bytes of LoRA layers in addition to its own weights. They are spread over its blocks and have their own type."""
    values_per_token: int = 0
    """For a ControlNet: how many values it passes to the denoiser in each step for 16x16 pixels."""
    largest_outside: int | None = field(default=None, compare=False)
    """Parameters of the largest tensor outside the blocks; None for at most all of them."""
    largest_inside: int = field(default=0, compare=False)
    """Parameters of the largest tensor in a block; 0 for no more than is usual in a block of its size."""
    needs_vae: bool = False
    """For a ControlNet: whether its control image is encoded to a latent, so its stage needs the VAE."""

    @property
    def outside_blocks(self) -> int:
        """Parameters outside the blocks: embeddings, the last norm."""
        return self.parameters - sum(self.blocks)


@dataclass(frozen=True)
class VaeCosts:
    """What a VAE takes, per pixel and byte of the number format. The defaults are those of AutoencoderKL as Stable
    Diffusion, SDXL and FLUX.1 have it."""

    decode_values: float = 768
    """Activations of the decoder."""
    encode_values: float = 650
    """Activations of the encoder."""
    encoder_parameters: int = 35_000_000
    """Of the encoder, whose weights are widened for a call in fp32."""


@dataclass(frozen=True)
class FamilyCosts:
    """The facts about a family of models that planning needs."""

    denoiser: str
    """The name of the component that denoises."""
    sample_values: Callable[[int, int], float]
    """(width, height) -> bytes of activations for one step of one image, per byte of the number format."""
    step_operations: Callable[[int, int, int], float]
    """(parameters of the denoiser, width, height) -> floating-point operations of one step of one image."""
    compressible: frozenset[str]
    """Components that may be stored in fewer bits: the denoiser and large text encoders. CLIP and a VAE are small and
    lose the most quality."""
    overflows_fp16: frozenset[str] = frozenset()
    """Components that compute in fp32 when the others compute in fp16."""
    frame_values: Callable[[int, int], float] | None = None
    """The same as ``sample_values`` for each frame of a video, if motion modules change it."""
    guides_at_once: bool = True
    """Whether a step with classifier-free guidance runs the denoiser once for both prompts, not once for each."""
    encode_values: float = 55_000_000
    """Activations of the longest prompt through the largest text encoder, per byte of the number format; as it is, of
    512 tokens through T5-XXL. CLIP needs less."""
    vae: VaeCosts = VaeCosts()
    fp16_without_bf16: bool = False
    """Whether the denoiser can compute in fp16 on a card without bf16."""


@dataclass(frozen=True)
class Machine:
    """The machine to plan for: free memory in bytes, transfer rates in bytes per second, fast number formats."""

    device: str
    free_vram: int
    """Bytes available on the device: free now, or held by models that ComfyUI can evict. 0 on a CPU."""
    free_ram: int
    bf16: bool
    fp16: bool
    fp8: bool = True
    transfer_rate: float = 12.5e9
    """Bytes per second from pinned RAM to the device: PCIe 3 x16 unless measured."""
    disk_rate: float = 1.5e9
    compute_rate: float | None = None
    """FLOP/s that a denoiser achieves in 16 bits, or in fp32 where that is all that the device computes in; None for
    the cautious default of the kind of device (costs.py)."""
    fp32_rate: float | None = None
    """The same in fp32."""
    card: str = ""
    """The name of the device, if it is known."""
    rates_from: Literal["assumed", "card", "measured"] = "assumed"
    """Where the rates of computing come from: nowhere, a table of cards, or this machine."""
    disk_from: Literal["assumed", "given", "measured"] = "assumed"
    """Where ``disk_rate`` comes from; measured: on the disk with the files."""

    @property
    def own_memory(self) -> bool:
        """Whether the device has memory of its own, so weights can be kept elsewhere."""
        return self.device in ACCELERATORS


@dataclass(frozen=True)
class Workload:
    """The request to plan for: size in pixels, number of images (sampled and decoded one by one), steps per image."""

    width: int
    height: int
    count: int = 1
    steps: int = 4
    passes: int = 1
    """Of the denoiser in each step: 2 with classifier-free guidance."""
    frames: int = 1
    """Of a video, which are denoised together."""
    encodes: ComputeType | None = None
    """The type that the VAE encodes an image in, if the request begins with one."""
    seen: int = 0
    """Pixels of other images that each step attends to beside its own: what it edits, and references."""

    @property
    def attended_height(self) -> int:
        """The height of an image of this width with as many pixels as a step attends to."""
        return self.height + -(-self.seen // self.width)


@dataclass(frozen=True)
class ComponentPlan:
    """Where the weights of one component live, and in which type."""

    storage: StorageType
    compute: ComputeType
    placement: PlacementKind
    """resident: stays on the device. stage: is there for its stage only. stream, disk: ``resident_blocks`` blocks stay,
    spread evenly over the order of use; the others are copied ahead of use, two at a time, from RAM or from disk.
    sequential: one layer at a time."""
    resident_blocks: int
    """For stream and disk: the number of blocks that stay. Otherwise the number of all blocks."""
    bytes: int
    """Bytes of all its weights in this storage type."""
    blocks: int = 0
    """The number of its blocks."""


@dataclass(frozen=True)
class Plan:
    """A memory plan: where each component lives and in which type, what that costs, and why it was chosen."""

    offload: OffloadMode
    precision: str
    components: Mapping[str, ComponentPlan]
    vae_tile: int | None
    """Side of a decoding tile in pixels; None to decode the image whole."""
    vae_slicing: bool
    """Whether the images of a batch are decoded one by one."""
    peak_vram: int
    peak_ram: int
    pinned_ram: int
    transfer_seconds: float
    """Transfer time of one request, with a new prompt and all its images, that computing does not hide."""
    fits: bool
    reasons: tuple[str, ...]
    compute_seconds: float = 0.0
    """Estimated compute time of the denoising steps, from ``Machine.compute_rate`` or the default of the device."""
    loading_vram: int = 0
    """Bytes of the card that loading takes, where weights are quantized there; also in ``peak_vram``."""
    copies_in_ram: bool = True
    """Whether RAM keeps a copy of the weights on the device, so they can be evicted without a copy back. False if RAM
    is too small and weights only pass through it."""

    @property
    def reads_files(self) -> bool:
        """Whether images wait for the disk: blocks, or all weights, are read from their files while they are made."""
        return self.offload == "disk" or not self.copies_in_ram


def gigabytes(size: float) -> str:
    """``size`` bytes as text, in GB or MB."""
    return f"{size / 1e9:.1f} GB" if size >= 950_000_000 else f"{size / 1e6:.0f} MB"
