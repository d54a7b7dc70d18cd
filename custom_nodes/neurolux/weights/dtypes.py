"""Maps the names of number formats in plans, nodes and reports to torch dtypes, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..planning.records import Plan, StorageType

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
TYPE_NAMES: dict[torch.dtype, StorageType] = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float8_e4m3fn: "fp8",
    torch.int8: "int8", torch.uint8: "nf4",
}  # fmt: skip


@dataclass(frozen=True)
class Precision:
    """The formats that the denoiser and the VAE compute in."""

    main: torch.dtype
    vae: torch.dtype

    @classmethod
    def of(cls, plan: Plan, denoiser: str) -> Precision:
        """The formats in ``plan``."""
        parts = plan.components
        return cls(DTYPES[parts[denoiser].compute], DTYPES[parts["vae"].compute])
