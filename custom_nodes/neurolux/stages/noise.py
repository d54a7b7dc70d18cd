"""The type in which the noise of a seed is drawn.

diffusers draws it in the type that a pipeline computes in, and so does the pack unless it is told otherwise. torch's
generator gives unrelated numbers in bf16 and fp32, so a seed then means another image on a device that computes in
another type. Drawn in fp32 and rounded, the noise of a seed is the same everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from .environment import chosen_noise

DRAW = "randn_tensor"
"""diffusers' function that draws random numbers. Each module that uses it has imported it by name."""
POSTERIORS = "diffusers.models.autoencoders.vae"
"""The module that draws from what a VAE encodes an image to."""


@contextmanager
def noise_drawn(pipe: Any) -> Iterator[None]:
    """Meanwhile ``pipe``, its scheduler and its VAE draw their random numbers as the environment says."""
    if chosen_noise() == "diffusers":
        yield
        return
    kinds = (*type(pipe).__mro__, *type(pipe.scheduler).__mro__)
    names = dict.fromkeys((POSTERIORS, *(kind.__module__ for kind in kinds)))
    with ExitStack() as stack:
        for module in (sys.modules[name] for name in names):
            if hasattr(module, DRAW):
                stack.enter_context(mock.patch.object(module, DRAW, in_fp32(getattr(module, DRAW))))
        yield


def in_fp32(draw: Any) -> Any:
    """``draw``, which draws in fp32 and rounds to the type that it is asked for."""

    def drawn(*args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> torch.Tensor:
        made = draw(*args, dtype=torch.float32, **kwargs)
        return made if dtype is None else made.to(dtype)

    return drawn
