"""The number formats that a pipeline computes in, as torch has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..planning.planner import Plan

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Precision:
    """The formats of the denoiser and of the VAE."""

    main: torch.dtype
    vae: torch.dtype

    @classmethod
    def of(cls, plan: Plan, denoiser: str) -> Precision:
        """Those that ``plan`` says."""
        parts = plan.components
        return cls(DTYPES[parts[denoiser].compute], DTYPES[parts["vae"].compute])
