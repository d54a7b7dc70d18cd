"""Which number format the weights are loaded in."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..catalog import Family
from ..errors import InvalidParameter

PRECISION_CHOICES = ("auto", "bf16", "fp16", "fp32")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
RAM_MARGIN = 1.15
"""Loading needs a little more than the weights: file buffers, activations, the rest of the process."""


@dataclass(frozen=True)
class DeviceTraits:
    """What the choice depends on: the kind of device, what it computes well, and the RAM that is free."""

    type: str
    bf16: bool
    fp16: bool
    free_ram: int


@dataclass(frozen=True)
class Precision:
    """The format of the denoiser and of the parts that need another one."""

    main: torch.dtype
    text_encoders: torch.dtype
    vae: torch.dtype


def choose_precision(
    wanted: str, traits: DeviceTraits, family: Family, parameters: int, *, force_upcast_vae: bool
) -> Precision:
    """The formats for a model of ``parameters`` weights; ``wanted`` is the user's choice or "auto".

    fp16 has two exceptions, both from diffusers: T5 overflows in it (PR 9097), and an SDXL VAE whose config says
    ``force_upcast`` decodes to black (pipeline_stable_diffusion_xl.py upcasts it to fp32 as well).
    """
    if wanted == "auto":
        main = automatic_dtype(traits, family, parameters)
    elif wanted in DTYPES:
        main = DTYPES[wanted]
    else:
        raise InvalidParameter("precision", f"unknown precision {wanted!r}; use {', '.join(PRECISION_CHOICES)}")
    half = main is torch.float16
    return Precision(
        main=main,
        text_encoders=torch.float32 if half and family == "flux" else main,
        vae=torch.float32 if half and force_upcast_vae else main,
    )


def automatic_dtype(traits: DeviceTraits, family: Family, parameters: int) -> torch.dtype:
    """bf16 where the device computes it; SDXL may use fp16; a CPU uses fp32 as long as it fits into RAM."""
    if traits.type == "cpu":
        return torch.float32 if parameters * 4 * RAM_MARGIN <= traits.free_ram else torch.bfloat16
    if traits.bf16:
        return torch.bfloat16
    if traits.type == "mps" or (family == "sdxl" and traits.fp16):
        return torch.float16
    return torch.float32


def count_parameters(files: Iterable[Path]) -> int:
    """Parameters in weight files: from the headers of safetensors, else at four bytes each."""
    return sum(
        safetensors_parameters(path) if path.suffix == ".safetensors" else path.stat().st_size // 4 for path in files
    )


def safetensors_parameters(path: Path) -> int:
    """Parameters of one safetensors file (its header is a length and a JSON object: safetensors' README)."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for side in tensor["shape"]:
                count *= side
            total += count
    return total
