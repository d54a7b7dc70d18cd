"""Where one component's weights are: some on the device, the others copied there ahead of use.

Two buffers on the device take turns. While one's weights compute, the other's are copied on a stream of their own; the
two streams wait for each other by events, so the host never waits for the device. What left its buffer is overwritten:
the masters in RAM (or in files) are the truth and nothing is ever copied back.

On a CPU the same code runs with streams that do nothing: copies are made all the same, so that weights that were not
brought in time would be noticed there too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import torch
from torch.utils.hooks import RemovableHandle

from ..planning.costs import spread
from .backends.base import Event
from .backends.choice import backend
from .pins import PinBudget
from .units import Unit

CPU = torch.device("cpu")
"""ComfyUI's device without a GPU: what is computed there needs no copy of what is in RAM."""


@dataclass(eq=False)
class Staging:
    """Pinned RAM that weights from files pass through, and the end of the last copy out of it."""

    memory: torch.Tensor
    copied: Event | None = None


@dataclass(eq=False)
class Buffer:
    """One of the two places on the device."""

    memory: torch.Tensor
    staging: Staging | None = None
    unit: Unit | None = None
    pending: Future[Event | None] | None = None
    """The copy of ``unit``: its event, or the error of reading it."""
    used: Event | None = None
    """The end of the last computing with it."""


class Residency:
    """Which of a component's units are on ``device``: the rest and some of them resident, the others streamed.

    ``mapped``: the masters are in files; a thread reads them ahead. ``ordered``: the units run in the order that they
    are given in; otherwise it is learned from the first pass.
    """

    def __init__(
        self,
        rest: Unit,
        units: Sequence[Unit],
        device: torch.device,
        *,
        mapped: bool = False,
        ordered: bool = True,
        repeats: bool = True,
        pins: PinBudget | None = None,
    ) -> None:
        self.rest = rest
        self.units = list(units)
        self.device = device
        self.mapped = mapped
        self.repeats = repeats
        self.flattens = device != CPU
        """Whether streamed masters are put into one (pinned) piece; a CPU would gain nothing by it."""
        self.placed = False
        self.streamed_bytes = 0
        """Bytes that were copied into the buffers so far: for measurements."""
        self._resident: set[int] = set()
        self._buffers: list[Buffer] = []
        self._staging: list[Staging] = []
        self._hooks: list[RemovableHandle] = []
        self._pins = pins or PinBudget(lambda: sys.maxsize)
        self._backend = backend()
        self._copies = self._backend.copies(device)
        self._reader: Executor | None = None
        self._running: dict[int, Buffer] = {}
        self._last: Unit | None = None
        self._next: dict[int, Unit] = {}
        if ordered:
            following = [*self.units[1:], *(self.units[:1] if repeats else [])]
            self._next = {id(unit): after for unit, after in zip(self.units, following, strict=False)}

    @property
    def total_bytes(self) -> int:
        """Bytes of all weights."""
        return self.rest.nbytes + sum(unit.nbytes for unit in self.units)

    @property
    def device_bytes(self) -> int:
        """Bytes that are on the device now, the buffers among them."""
        if not self.placed:
            return 0
        resident = sum(self.units[index].nbytes for index in self._resident)
        return self.rest.nbytes + resident + sum(buffer.memory.nbytes for buffer in self._buffers)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the units that are on the device for good."""
        return sum(self.units[index].nbytes for index in self._resident) if self.placed else 0

    @property
    def whole(self) -> bool:
        """Whether nothing is streamed."""
        return self.placed and len(self._resident) == len(self.units)

    def place(self, budget: float) -> None:
        """Bring the rest, and as many units as fit into ``budget`` bytes beside two buffers for the others.

        What is resident already stays if it fits. The rest and the buffers are the least; they come in any case. On an
        error everything leaves.
        """
        chosen = self._choose(budget)
        with torch.inference_mode(False), torch.no_grad():
            try:
                for index in self._resident - chosen:
                    self._send_home(index)
                if not self.placed:
                    self._bring(self.rest)
                    self.placed = True
                for index in sorted(chosen - self._resident):
                    self._bring(self.units[index])
                    self._resident.add(index)
            except BaseException:
                self.leave()
                raise
        self._hook()

    def prepare(self, budget: float) -> None:
        """Put the masters of what ``budget`` leaves to be streamed into pieces now, so that the first image need not
        wait for that."""
        if self.flattens and not self.mapped:
            chosen = self._choose(budget)
            with torch.inference_mode(False), torch.no_grad():
                for index, unit in enumerate(self.units):
                    if index not in chosen:
                        unit.flatten(self._pins)

    def _choose(self, budget: float) -> set[int]:
        """The units to keep: what is resident thinned out, or the others in between filled up."""
        if budget >= self.total_bytes:
            return set(range(len(self.units)))
        chosen = set(self._resident)
        largest = max((unit.buffer_bytes for unit in self.units), default=0)
        for _ in range(2):  # once more, because the largest may have become resident: the buffers are smaller then
            kept = max(0.0, budget - self.rest.nbytes - 2 * largest)
            chosen = self._fill(chosen, kept)
            largest = max(
                (unit.buffer_bytes for index, unit in enumerate(self.units) if index not in chosen), default=0
            )
        return chosen

    def _fill(self, chosen: set[int], kept: float) -> set[int]:
        sizes = [unit.nbytes for unit in self.units]
        used = sum(sizes[index] for index in chosen)
        if used > kept:
            order = sorted(chosen)
            return {order[place] for place in spread([sizes[index] for index in order], kept)}
        others = [index for index in range(len(sizes)) if index not in chosen]
        return chosen | {others[place] for place in spread([sizes[index] for index in others], kept - used)}

    def _bring(self, unit: Unit) -> None:
        if self.device == CPU and not self.mapped:
            unit.go_home()  # the masters are where they are needed
            return
        if self._backend.masters_move and not self.mapped:
            unit.settle(self.device)
            return
        # Mapped weights are copied on a CPU too: in a file they are at any address, and for some addresses the
        # matrix products round otherwise.
        unit.point_at([slot.home.to(self.device, copy=True) for slot in unit.slots])

    def _send_home(self, index: int) -> None:
        self._resident.discard(index)
        self.units[index].go_home()

    def release(self, size: int) -> int:
        """Free at least ``size`` bytes by sending resident units home, evenly; returns what was freed.

        From then on they are streamed, in buffers that take memory again when the component next works.
        """
        before = self.device_bytes
        with torch.inference_mode(False), torch.no_grad():
            self.drop_buffers()
            missing = size - (before - self.device_bytes)
            if missing > 0:
                order = sorted(self._resident)
                sizes = [self.units[index].nbytes for index in order]
                kept = spread(sizes, max(0, sum(sizes) - missing)) if missing <= sum(sizes) else set()
                for place, index in enumerate(order):
                    if place not in kept:
                        self._send_home(index)
        self._hook()
        return before - self.device_bytes

    def leave(self) -> None:
        """Take everything off the device."""
        with torch.inference_mode(False), torch.no_grad():
            self.drop_buffers()
            for index in list(self._resident):
                self._send_home(index)
            self.rest.go_home()
            if self._staging:
                self._drop_staging()
        self.placed = False
        self._hook()

    def drop_buffers(self) -> None:
        """Give the buffers back: at the end of a stage, whether it ended well or not."""
        for buffer in self._buffers:
            if buffer.pending is not None:
                buffer.pending.exception()  # a read that is under way ends first; an error in it concerns nobody now
            if buffer.unit is not None:
                buffer.unit.go_home()
        self._copies.drain()
        self._buffers.clear()
        self._running.clear()
        self._last = None
        if self._reader is not None:
            self._reader.shutdown()
            self._reader = None

    def close(self) -> None:
        """Leave for good: no hook stays, no copy is under way."""
        self.leave()
        self._copies.finish()
        self._unhook()

    # At work: each streamed unit's module calls _enter before and _exit after it runs.

    def _hook(self) -> None:
        """Hooks are there as long as something is streamed, and only then."""
        if not self.placed or self.whole:
            self._unhook()
        elif not self._hooks:
            for index, unit in enumerate(self.units):
                if unit.module is not None:
                    self._hooks.append(unit.module.register_forward_pre_hook(self._at_work(self._enter, index)))
                    self._hooks.append(unit.module.register_forward_hook(self._at_work(self._exit, index)))

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _at_work(self, what: Callable[[Unit], None], index: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if index in self._resident:
                return
            with torch.inference_mode(False), torch.no_grad():
                what(self.units[index])

        return hook

    def _enter(self, unit: Unit) -> None:
        if not self._buffers:
            self._make_buffers()
        if self._last is not None and self._last is not unit and (self.repeats or unit is not self.units[0]):
            self._next[id(self._last)] = unit
        self._last = unit
        buffer = next((buffer for buffer in self._buffers if buffer.unit is unit), None)
        if buffer is None:
            buffer = next(buffer for buffer in self._buffers if buffer not in self._running.values())
            self._fetch(unit, buffer)
        assert buffer.pending is not None
        event = buffer.pending.result()
        self._copies.wait(event)
        unit.point_at(unit.views(buffer.memory))
        self._running[id(unit)] = buffer
        self._fetch_ahead(unit)

    def _exit(self, unit: Unit) -> None:
        buffer = self._running.pop(id(unit), None)
        if buffer is None:
            return
        unit.go_home()
        buffer.used = self._copies.mark()
        buffer.unit = buffer.pending = None
        coming = self._streamed_after(unit)
        if coming is not None and all(other.unit is not None for other in self._buffers if other is not buffer):
            following = self._streamed_after(coming)
            if following is not None and following is not coming:
                self._fetch(following, buffer)
        elif coming is not None:
            self._fetch(coming, buffer)

    def _fetch_ahead(self, unit: Unit) -> None:
        """Begin to bring what runs next, where a buffer is free for it."""
        coming = self._streamed_after(unit)
        if coming is None or any(buffer.unit is coming for buffer in self._buffers):
            return
        free = [buffer for buffer in self._buffers if buffer not in self._running.values()]
        if free:
            self._fetch(coming, free[0])

    def _streamed_after(self, unit: Unit) -> Unit | None:
        resident = {id(self.units[index]) for index in self._resident}
        following = self._next.get(id(unit))
        for _ in self.units:
            if following is None or id(following) not in resident:
                break
            following = self._next.get(id(following))
        return None if following is unit else following

    def _make_buffers(self) -> None:
        largest = max(unit.buffer_bytes for index, unit in enumerate(self.units) if index not in self._resident)
        if self.mapped and self.device != CPU and not (self._staging and self._staging[0].memory.nbytes >= largest):
            self._drop_staging()
            self._staging = [Staging(self._backend.host_memory(largest, pin=True)) for _ in range(2)]
        for place in range(2):
            memory = torch.empty(largest, dtype=torch.uint8, device=self.device)
            self._buffers.append(Buffer(memory, self._staging[place] if self._staging else None))
        free = self._copies.mark()  # their memory may have been something else's until now
        for buffer in self._buffers:
            buffer.used = free

    def _fetch(self, unit: Unit, buffer: Buffer) -> None:
        """Begin to copy ``unit`` into ``buffer``, after the computing that used it."""
        if buffer.unit is not None and buffer.pending is not None:
            buffer.pending.exception()
            # fetched for nothing, the order was another: the device may still be writing it, in stream order
        buffer.unit = unit
        self.streamed_bytes += unit.nbytes
        if self.mapped:
            self._reader = self._reader or self._backend.reader()
            buffer.pending = self._reader.submit(self._read, unit, buffer)
            return
        buffer.pending = Future()
        event = None
        if self.flattens:
            flat = unit.flatten(self._pins)
            event = self._copies.copy(buffer.memory[: flat.nbytes], flat, buffer.used)
        else:
            unit.copy_home(buffer.memory)
        buffer.pending.set_result(event)

    def _read(self, unit: Unit, buffer: Buffer) -> Event | None:
        """On the reader's thread: from the files into RAM that is pinned, and on to the device."""
        with torch.inference_mode(False), torch.no_grad():
            staging, size = buffer.staging, unit.buffer_bytes
            if staging is None:
                unit.copy_home(buffer.memory)
                return None
            if staging.copied is not None:
                staging.copied.synchronize()
            unit.copy_home(staging.memory)
            staging.copied = self._copies.copy(buffer.memory[:size], staging.memory[:size], buffer.used)
            return staging.copied

    def _drop_staging(self) -> None:
        self._copies.finish()
        for staging in self._staging:
            self._backend.release(staging.memory)
        self._staging.clear()
