"""diffusers' schedulers on tensors without numbers: a step's arithmetic is theirs, the looking up is not."""

from __future__ import annotations

from functools import cache, wraps
from typing import Any

import torch

from .tensors import no_modes


def steady_scheduler(scheduler: Any) -> Any:
    """``scheduler``, which finds its place in the schedule without comparing tensors."""
    scheduler.__class__ = steady_class(type(scheduler))
    return scheduler


@cache
def steady_class(kind: type) -> type:
    """``kind``, steady."""

    class Steady(kind):  # pyright: ignore[reportGeneralTypeIssues]
        @wraps(kind.__init__)
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            with no_modes():
                super().__init__(*args, **kwargs)

        @wraps(kind.set_timesteps)
        def set_timesteps(self, num_inference_steps: Any = None, device: Any = None, **more: Any) -> None:
            with no_modes():
                super().set_timesteps(num_inference_steps, device="cpu", **more)
                shape, dtype = tuple(self.timesteps.shape), self.timesteps.dtype
            self.timesteps = torch.empty(shape, dtype=dtype, device=device)

        def index_for_timestep(self, *_: Any, **__: Any) -> int:
            return 0

        @property
        def init_noise_sigma(self) -> float:
            return 1.0

    Steady.__name__ = kind.__name__
    Steady.__qualname__ = kind.__name__
    return Steady
