"""The backend of a simulated card: streams, events, pinned and mapped RAM that only exist in its books."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import torch

from ..memory.backends.base import CopyStream, DeviceBackend, Event, HostMemory
from ..memory.backends.host import SMALLEST_PINNED
from .card import SimulatedMachine
from .clocks import Lane

CARD = torch.device("cuda", 0)


class SimulatedEvent:
    """What a lane had done when the event was recorded."""

    def __init__(self, machine: SimulatedMachine, lane: Lane) -> None:
        lane.come_after(machine.thread.seen)
        lane.advance()
        self._machine = machine
        self.seen = dict(lane.seen)

    def synchronize(self) -> None:
        """The host waits."""
        self._machine.thread.come_after(self.seen)


class SimulatedStream(CopyStream):
    """A stream of copies."""

    def __init__(self, machine: SimulatedMachine, device: torch.device) -> None:
        super().__init__(device)
        self._machine = machine
        self._lane = machine.new_lane("copies")

    def mark(self) -> SimulatedEvent:
        return SimulatedEvent(self._machine, self._machine.computing)

    def copy(self, to: torch.Tensor, source: torch.Tensor, after: Event | None) -> SimulatedEvent:
        if isinstance(after, SimulatedEvent):
            self._lane.come_after(after.seen)
        before, self._machine.stream = self._machine.stream, self._lane
        try:
            to.copy_(source, non_blocking=True)
        finally:
            self._machine.stream = before
        return SimulatedEvent(self._machine, self._lane)

    def wait(self, event: Event | None) -> None:
        if isinstance(event, SimulatedEvent):
            self._machine.computing.come_after(event.seen)

    def drain(self) -> None:
        self._machine.computing.come_after(self._lane.seen)

    def finish(self) -> None:
        self._machine.thread.come_after(self._lane.seen)


class SimulatedReader(Executor):
    """The reader's thread, as a lane of its own. It works at once, but whoever does not wait for it comes too early."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine
        self._lane = machine.new_lane("reader")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        machine = self._machine
        self._lane.come_after(machine.thread.seen)
        before, machine.thread = machine.thread, self._lane
        future = WaitedFor(machine)
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        finally:
            machine.thread = before
        future.seen = dict(self._lane.seen)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing runs any more."""


class WaitedFor(Future[Any]):
    """A future whose caller comes after its work."""

    def __init__(self, machine: SimulatedMachine) -> None:
        super().__init__()
        self._machine = machine
        self.seen: dict[str, int] = {}

    def result(self, timeout: float | None = None) -> Any:
        self._machine.thread.come_after(self.seen)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._machine.thread.come_after(self.seen)
        return super().exception(timeout)


class SimulatedBackend(DeviceBackend):
    """Answers for ``machine``."""

    kind = "simulated"

    def __init__(self, machine: SimulatedMachine) -> None:
        self.machine = machine

    def free_memory(self, device: torch.device) -> int:
        return self.machine.free_card if device.type == "cuda" else self.machine.available_ram

    def total_memory(self, device: torch.device) -> int:
        return self.machine.vram if device.type == "cuda" else self.machine.ram

    def host(self) -> HostMemory:
        return HostMemory(self.machine.ram, self.machine.available_ram)

    def host_memory(self, size: int, *, pin: bool = False) -> torch.Tensor:
        memory = torch.empty(max(size, 1), dtype=torch.uint8)
        memory = torch.nn.Parameter(memory, requires_grad=False)
        if pin and size >= SMALLEST_PINNED:
            self.pin(memory)
        return memory

    def pin(self, memory: torch.Tensor) -> bool:
        if self.machine.faults.refuses_pins:
            return False
        self.machine.change_kind(memory.untyped_storage(), "pinned")
        return True

    def release(self, memory: torch.Tensor) -> None:
        self.machine.unpin(memory.untyped_storage())

    def pinned_bytes(self) -> int:
        return self.machine.alive["pinned"]

    def mapped(self) -> Callable[[torch.Tensor], bool]:
        return lambda tensor: self.machine.kind_of(tensor) == "mapped"

    def spill(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [self.mapped_tensor(tensor.shape, tensor.dtype) for tensor in tensors]

    def mapped_tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor in a file."""
        self.machine.new_kind = "mapped"
        try:
            return torch.empty(tuple(shape), dtype=dtype)
        finally:
            self.machine.new_kind = "ram"

    def reader(self) -> Executor:
        return SimulatedReader(self.machine)

    def copies(self, device: torch.device) -> CopyStream:
        return SimulatedStream(self.machine, device) if device.type == "cuda" else CopyStream(device)

    def name(self, device: torch.device) -> str:
        return f"a simulated card of {self.machine.vram / 1e9:g} GB"

    def computes_bf16(self, device: torch.device) -> bool:
        return device.type == "cuda" and self.machine.capability[0] >= 8

    def computes_fp16(self, device: torch.device) -> bool:
        return device.type == "cuda" and self.machine.capability[0] >= 6

    def compute_rate(self, device: torch.device) -> None:
        """Its time is not simulated."""

    def transfer_rate(self, device: torch.device) -> float | None:
        return self.machine.transfer_rate if device.type == "cuda" else None


@contextmanager
def believed_by_the_manager(backend: SimulatedBackend) -> Iterator[None]:
    """ComfyUI's memory manager takes the simulated card for its own meanwhile."""
    from unittest import mock

    import comfy.model_management as mm

    def free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
        free = backend.free_memory(dev or CARD)
        return (free, 0) if torch_free_too else free

    def total_memory(dev: Any = None, torch_total_too: bool = False) -> Any:
        total = backend.total_memory(dev or CARD)
        return (total, total) if torch_total_too else total

    place = mm.load_models_gpu

    def load_models_gpu(models: Any, memory_required: int = 0, **more: Any) -> None:
        backend.machine.at_work = False
        place(models, memory_required=memory_required, **more)
        backend.machine.begin_stage(memory_required)

    answers: dict[str, Any] = {
        "load_models_gpu": load_models_gpu,
        "get_torch_device": lambda: CARD,
        "get_free_memory": free_memory,
        "get_total_memory": total_memory,
        "soft_empty_cache": lambda force=False: None,
        "vram_state": mm.VRAMState.NORMAL_VRAM,
        "cpu_state": mm.CPUState.GPU,
        "lowvram_available": True,
        "current_loaded_models": [],
    }
    with mock.patch.multiple(mm, **answers):
        yield
