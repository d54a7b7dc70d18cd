"""The storage type and the compute type of each component. Pure.

fp16 has two exceptions, both from diffusers: T5 overflows in it (PR 9097), and an SDXL VAE with ``force_upcast`` in
its config decodes to black (pipeline_stable_diffusion_xl.py also upcasts it to fp32).
"""

from __future__ import annotations

from collections.abc import Mapping

from .records import ComponentShape, ComputeType, FamilyCosts, Machine, StorageType

Formats = Mapping[str, tuple[StorageType, ComputeType]]
FULL_TYPES: tuple[ComputeType, ...] = ("fp32", "bf16", "fp16")


def is_text_encoder(name: str) -> bool:
    """Whether the component belongs to the encoding stage."""
    return name.startswith("text_encoder")


def compute_type(family: FamilyCosts, machine: Machine) -> ComputeType:
    """The type that the device computes fast in: bf16; fp16 on MPS and for Stable Diffusion, unless the denoiser
    overflows in it; else fp32. Always fp32 on a CPU."""
    if machine.device == "cpu":
        return "fp32"
    if machine.bf16:
        return "bf16"
    fast = machine.device == "mps" or (family.fp16_without_bf16 and machine.fp16)
    return "fp16" if fast and family.denoiser not in family.overflows_fp16 else "fp32"


def automatic_precisions(family: FamilyCosts, machine: Machine) -> tuple[str, ...]:
    """The lossless precisions, best first. The last one converts nothing, so weights can stay in their files."""
    main = compute_type(family, machine)
    if machine.device == "cpu":
        return ("fp32", "bf16", "as-is")
    if main == "fp32":
        # The files hold 16-bit weights. Stored as they are and widened layer by layer, they take half the memory.
        return ("as-is",)
    return (main, "as-is")


def choose_formats(
    family: FamilyCosts,
    shapes: Mapping[str, ComponentShape],
    machine: Machine,
    precision: str,
    *,
    chosen: bool,
    force_upcast_vae: bool,
) -> Formats:
    """Storage and compute type of each component in ``precision`` (one of PRECISION_CHOICES except "auto").

    ``chosen``: the user chose the precision, so the pipeline also computes in it if it can. Otherwise the device
    decides the compute type.
    """
    native = compute_type(family, machine)
    if precision in FULL_TYPES and (chosen or machine.device == "cpu"):
        main: ComputeType = precision
    else:
        main = native
    return {
        name: component_format(family, name, shape, precision, main, force_upcast_vae) for name, shape in shapes.items()
    }


def component_format(
    family: FamilyCosts, name: str, shape: ComponentShape, precision: str, main: ComputeType, force_upcast_vae: bool
) -> tuple[StorageType, ComputeType]:
    """Storage and compute type of one component in a pipeline that computes in ``main``."""
    compute = main
    if main == "fp16" and (name in family.overflows_fp16 or (name == "vae" and force_upcast_vae)):
        compute = "fp32"
    if shape.stored == "gguf":
        return "gguf", compute  # a GGUF file keeps its own types, whatever the compute type
    if name not in family.compressible:
        return compute, compute
    if shape.stored in ("int8", "nf4"):
        return shape.stored, compute  # quantised on disk: unpacking does not restore precision
    if precision == "as-is":
        return shape.stored or compute, compute
    if precision in ("fp8", "int8", "nf4"):
        return precision, compute  # pyright: ignore[reportReturnType]
    return compute, compute
