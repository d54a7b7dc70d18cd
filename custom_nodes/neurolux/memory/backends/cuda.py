"""NVIDIA GPUs, and AMD's, which torch drives under the same names (ROCm)."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import cast

import comfy.model_management as mm
import torch

from ..manager import may_pin
from .base import CopyStream, DeviceBackend, Event

_log = logging.getLogger(__name__)
PROBE_BYTES = 64 << 20
PROBES = 4
PROBE_SIDE = 4096
"""Of the matrices whose product is timed: 0.14 TFLOP, a millisecond on an H100 and ten on an RTX 3060."""


class CudaCopyStream(CopyStream):
    """Copies on a stream of their own, beside the computing. Events order the two, so the host never waits."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)

    def mark(self) -> Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def copy(self, to: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event:
        if after is not None:
            self._stream.wait_event(cast(torch.cuda.Event, after))
        with torch.cuda.stream(self._stream):
            to.copy_(source, non_blocking=True)
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait(self, event: Event | None) -> None:
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(cast(torch.cuda.Event, event))

    def drain(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def finish(self) -> None:
        self._stream.synchronize()


class CudaBackend(DeviceBackend):
    """An NVIDIA GPU."""

    kind = "cuda"

    def pin(self, memory: torch.Tensor) -> bool:
        """Pinned in place (cudaHostRegister) within the manager's own budget.

        torch's pinned allocator would round to powers of two, 37 GB for FLUX's 24. A registration that the driver
        refuses leaves its error behind, for the next operation to fail with.
        """
        if not may_pin(memory.nbytes):
            return False
        if mm.pin_memory(memory):
            return True
        take_queued_error()
        return False

    def release(self, memory: torch.Tensor) -> None:
        if memory.data_ptr() in mm.PINNED_MEMORY:
            mm.unpin_memory(memory)

    def pinned_bytes(self) -> int:
        return int(mm.TOTAL_PINNED_MEMORY)

    def copies(self, device: torch.device) -> CopyStream:
        return CudaCopyStream(device)

    def name(self, device: torch.device) -> str:
        return torch.cuda.get_device_name(device)

    def transfer_rate(self, device: torch.device) -> float:
        return measured_transfer(self, device)

    def compute_rate(self, device: torch.device) -> float | None:
        dtype = torch.bfloat16 if self.computes_bf16(device) else torch.float16
        try:
            return measured_product(device, dtype if self.computes_fp16(device) else torch.float32)
        except RuntimeError as error:  # a full card is planned for without it, and measured another time
            if self.is_out_of_memory(error):
                return None
            raise


class RocmBackend(CudaBackend):
    """An AMD GPU: torch's HIP build answers to the names of CUDA."""

    kind = "rocm"


def take_queued_error() -> None:
    """Have a small operation raise the error that a failed call of the CUDA runtime left behind."""
    try:
        torch.zeros(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    except RuntimeError as error:
        _log.debug("NeuroLux: refused by the driver: %s", error)


def gpu_available() -> bool:
    """Whether torch finds an NVIDIA or AMD GPU, whatever ComfyUI was told to compute on."""
    return torch.cuda.is_available()


def is_rocm() -> bool:
    """Whether this torch was built for AMD GPUs."""
    return torch.version.hip is not None


@lru_cache(maxsize=8)
def measured_transfer(backend: DeviceBackend, device: torch.device) -> float:
    """Bytes a second from pinned RAM to ``device``."""
    source = backend.host_memory(PROBE_BYTES, pin=True)
    target = torch.empty(PROBE_BYTES, dtype=torch.uint8, device=device)
    target.copy_(source)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(PROBES):
        target.copy_(source, non_blocking=True)
    end.record()
    end.synchronize()
    backend.release(source)
    return PROBES * PROBE_BYTES / (start.elapsed_time(end) / 1000)


@lru_cache(maxsize=8)
def measured_product(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of square matrices in ``dtype``: the most that a denoiser can reach."""
    matrix = torch.ones(PROBE_SIDE, PROBE_SIDE, dtype=dtype, device=device)
    torch.matmul(matrix, matrix)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(PROBES):
        torch.matmul(matrix, matrix)
    end.record()
    end.synchronize()
    return PROBES * 2 * PROBE_SIDE**3 / (start.elapsed_time(end) / 1000)
