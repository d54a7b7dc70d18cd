"""What goes with the GPU benchmark's figures: the limit of its time, and whether the GPU computes what a CPU does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    import torch

LIMIT_S = 600
PARITY_TOLERANCE = 0.02
"""Of an image's range, the most that a value may differ between a GPU and a CPU that compute in fp32: a few thousandths
are cuDNN's convolutions, which round to TF32."""


class TimeIsUp(BaseException):
    """The limit is reached. No measurement takes it for its own failure."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeIsUp in this thread, the main one, after ``seconds``, whatever it does then."""

    def stop(*_: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """ComfyUI and the pack compute on ``device`` meanwhile."""
    import comfy.model_management as mm

    with mock.patch.object(mm, "get_torch_device", return_value=device):
        yield


def parity_difference(bench: Any, device: torch.device, mode: str) -> float:
    """The largest difference between one image of ``bench``, a tiny model in fp32, on ``device`` and on the CPU, as a
    share of the image's range."""
    import torch

    images = []
    for where in (device, torch.device("cpu")):
        with computing_on(where):
            images.append(bench.image(where, mode))
    return float((images[0] - images[1]).abs().max())


def parity_line(name: str, mode: str, difference: float) -> str:
    """A line about it."""
    verdict = "as on the CPU" if difference <= PARITY_TOLERANCE else "NOT as on the CPU"
    return f"{name:15} {mode}, tiny, fp32: {verdict} (differs by {difference:.4f}, tolerance {PARITY_TOLERANCE})"
