"""What the pack asks of a device and of the machine around it, and the answers of a device without streams.

Everything that touches a device goes through a ``DeviceBackend``: copies and their order, free memory, pinned and
mapped RAM, rates, names. So a simulated card can stand in for a real one (``dry_run/``), and another kind of device
needs one class.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import comfy.model_management as mm
import psutil
import torch

from ..manager import manager_says_out_of_memory
from . import files, host

OUT_OF_MEMORY_TEXTS = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "HIP error: out of memory",
    "HIP out of memory",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""How torch words it without its own exception: its CPU allocator, and what drivers and libraries could not allocate
(``torch.AcceleratorError``)."""


class Event(Protocol):
    """A point in a stream's work."""

    def synchronize(self) -> None:
        """Block the host until the work before it is done."""


class CopyStream:
    """Copies to a device, in order. Here each is done when the call returns, as on devices without streams."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Event | None:
        """The end of what the computing stream has to do by now; None if nothing needs waiting for."""
        return None

    def copy(self, to: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event | None:
        """Copy after ``after``; the event is what the computing stream must wait for."""
        to.copy_(source)
        return None

    def wait(self, event: Event | None) -> None:
        """Let the computing stream wait for ``event``."""

    def drain(self) -> None:
        """Let the computing stream wait for all copies, so that their memory can be used for something else."""

    def finish(self) -> None:
        """Block the host until all copies are done: before memory that they read is given back."""


@dataclass(frozen=True)
class HostMemory:
    """RAM in bytes."""

    total: int
    available: int
    """What a program can have without swapping: free, or in caches that the system drops."""


class DeviceBackend:
    """One kind of device. The base answers for a device without streams, whose memory the manager knows."""

    kind = "other"
    masters_move = False
    """Whether weights move to the device and leave nothing in RAM, because its memory is the machine's RAM."""

    # Memory

    def free_memory(self, device: torch.device) -> int:
        """Bytes of ``device`` that can be allocated now, torch's own cache included."""
        return int(mm.get_free_memory(device))

    def total_memory(self, device: torch.device) -> int:
        """Bytes of ``device`` in all."""
        return int(mm.get_total_memory(device))

    def host(self) -> HostMemory:
        """RAM of this machine."""
        memory = psutil.virtual_memory()
        return HostMemory(int(memory.total), int(memory.available))

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether ``error`` says that the device or RAM has no memory left."""
        if isinstance(error, torch.OutOfMemoryError) or manager_says_out_of_memory(error):
            return True
        return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)

    # Masters in RAM and in files

    def host_memory(self, size: int, *, pin: bool = False) -> torch.Tensor:
        """``size`` bytes of RAM on pages of their own; pinned if that is asked for and possible."""
        memory = host.whole_pages(size)
        if pin and size >= host.SMALLEST_PINNED:
            self.pin(memory)
        return memory

    def pin(self, memory: torch.Tensor) -> bool:
        """Pin what ``host_memory`` gave, so that copies from it run beside the computing. False: it stays as it is."""
        return False

    def release(self, memory: torch.Tensor) -> None:
        """Unpin what ``host_memory`` pinned. No copy may be under way."""

    def pinned_bytes(self) -> int:
        """Bytes of RAM that are pinned now."""
        return 0

    def mapped(self) -> Callable[[torch.Tensor], bool]:
        """A function that says whether a tensor is mapped from a file."""
        return files.FileMappings().__contains__

    def spill(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """``tensors`` written into a file without a name, and mapped from there. Raises WeightsMissing."""
        return files.spill(tensors)

    def reader(self) -> Executor:
        """The thread that reads mapped weights ahead."""
        return ThreadPoolExecutor(1, thread_name_prefix="neurolux-weights")

    # Copies

    def copies(self, device: torch.device) -> CopyStream:
        """A stream of copies to ``device``."""
        return CopyStream(device)

    # What it can do

    def name(self, device: torch.device) -> str:
        """The device as a person calls it."""
        return device.type.upper()

    def computes_bf16(self, device: torch.device) -> bool:
        """Whether bf16 is fast, by the manager's rules and ComfyUI's command line."""
        return bool(mm.should_use_bf16(device))

    def computes_fp16(self, device: torch.device) -> bool:
        """Whether fp16 is."""
        return bool(mm.should_use_fp16(device))

    def transfer_rate(self, device: torch.device) -> float | None:
        """Bytes a second from pinned RAM to ``device``, measured once; None where nothing is copied ahead."""
        return None

    def compute_rate(self, device: torch.device) -> float | None:
        """FLOP/s of a large matrix product in 16 bits, measured once; None where it is not measured."""
        return None

    def now(self) -> float:
        """Seconds on a clock that only goes forward."""
        return time.perf_counter()
