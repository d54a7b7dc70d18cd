"""A machine with a card, as a dry run counts it: what is alive where, and the most that ever was."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..planning.costs import CONTEXT_BYTES, SYSTEM_RAM_BYTES
from .clocks import Hazard, Lane, Uses, access, release

MemoryKind = Literal["card", "ram", "pinned", "mapped"]
GRAIN = 512
"""Of CUDA's allocator, in bytes."""


@dataclass
class Faults:
    """What goes wrong on purpose."""

    out_of_memory_at: int | None = None
    """The number of the allocation on the card that fails, once; counted from 1."""
    happened: bool = False
    """Whether that allocation was reached."""
    refuses_pins: bool = False
    overstated: int = 0
    """Bytes that the driver reports as free and are not."""


@dataclass(eq=False)
class Piece:
    """One storage."""

    kind: MemoryKind
    bytes: int
    lane: Lane
    """The lane that allocated it, in whose order it is used again."""
    uses: Uses = field(default_factory=Uses)


@dataclass
class Room:
    """The working memory of one stage, in bytes."""

    reserved: int
    before: int
    """On the card when the stage began."""
    most: int

    @property
    def taken(self) -> int:
        """What it took at most, with the buffers of streamed weights."""
        return self.most - self.before


class SimulatedMachine:
    """A card of ``vram`` bytes in a machine with ``ram`` bytes."""

    def __init__(
        self,
        vram: int,
        ram: int,
        *,
        capability: tuple[int, int] = (8, 6),
        transfer_rate: float = 12.5e9,
        faults: Faults | None = None,
    ) -> None:
        self.vram, self.ram = vram, ram
        self.capability = capability
        self.transfer_rate = transfer_rate
        self.faults = faults or Faults()
        self.capacity = vram - CONTEXT_BYTES
        self.system_ram = min(SYSTEM_RAM_BYTES, ram // 4)
        self.alive: dict[MemoryKind, int] = {"card": 0, "ram": 0, "pinned": 0, "mapped": 0}
        self.peak_card = self.peak_ram = self.peak_pinned = 0
        self.rooms: list[Room] = []
        """Of the stages so far, what was set aside for them to work in, and what they took."""
        self.at_work = False
        self.allocations = 0
        self.to_card = self.unpinned_to_card = 0
        """Bytes that were copied, and those of them that the host had to wait for."""
        self.hazards: list[Hazard] = []
        self.host = Lane("host")
        self.computing = Lane("computing")
        self.thread = self.host
        """Of the host: the one that runs now."""
        self.stream = self.computing
        """Of the card: the one that operations go to now."""
        self.new_kind: MemoryKind = "ram"
        """Of what is allocated in RAM now."""
        self._lanes = 0
        self._pieces: dict[int, Piece] = {}

    def new_lane(self, name: str) -> Lane:
        """A lane of its own."""
        self._lanes += 1
        return Lane(f"{name} {self._lanes}")

    @property
    def free_card(self) -> int:
        """Bytes that the driver says are free."""
        return max(0, self.capacity - self.alive["card"] + self.faults.overstated)

    @property
    def available_ram(self) -> int:
        """Bytes of RAM that a program can have. Mapped pages can be dropped, so they do not count."""
        return max(0, self.ram - self.system_ram - self.alive["ram"] - self.alive["pinned"])

    def reset_peaks(self) -> None:
        """Count the most from now on."""
        self.peak_card = self.alive["card"]
        self.peak_pinned = self.alive["pinned"]
        self.peak_ram = self.alive["ram"] + self.alive["pinned"]

    def piece(self, storage: torch.UntypedStorage, device: torch.device) -> Piece:
        """What is known of ``storage``; one that was not known counts from now on."""
        key = storage._cdata
        known = self._pieces.get(key)
        if known is not None:
            return known
        on_card = device.type == "cuda"
        made = Piece("card" if on_card else self.new_kind, storage.nbytes(), self.stream if on_card else self.thread)
        if device.type not in ("cuda", "cpu"):
            made.bytes = 0
        if on_card:
            made.bytes = -(-made.bytes // GRAIN) * GRAIN
            self._check_card(made.bytes)
        self._count(made, 1)
        self._pieces[key] = made
        weakref.finalize(storage, self._gone, key).atexit = False
        return made

    def begin_stage(self, reserved: int) -> None:
        """The manager has placed a stage's weights and set ``reserved`` bytes aside."""
        self.at_work = True
        self.rooms.append(Room(reserved, self.alive["card"], self.alive["card"]))

    def change_kind(self, storage: torch.UntypedStorage, kind: MemoryKind) -> None:
        """``storage`` is in another kind of memory now: pinned, unpinned, in a file."""
        piece = self._pieces[storage._cdata]
        self._count(piece, -1)
        piece.kind = kind
        self._count(piece, 1)

    def kind_of(self, tensor: torch.Tensor) -> MemoryKind:
        """Where ``tensor`` is."""
        return self.piece(tensor.untyped_storage(), tensor.device).kind

    def _check_card(self, size: int) -> None:
        self.allocations += 1
        planted = self.allocations == self.faults.out_of_memory_at
        self.faults.happened |= planted
        if planted or self.alive["card"] + size > self.capacity:
            used = self.alive["card"] / 1e6
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size / 1e6:.0f} MB; {used:.0f} MB are in use"
            )

    def _count(self, piece: Piece, sign: int) -> None:
        self.alive[piece.kind] += sign * piece.bytes
        self.peak_card = max(self.peak_card, self.alive["card"])
        if self.at_work:
            self.rooms[-1].most = max(self.rooms[-1].most, self.alive["card"])
        self.peak_pinned = max(self.peak_pinned, self.alive["pinned"])
        self.peak_ram = max(self.peak_ram, self.alive["ram"] + self.alive["pinned"])

    def _gone(self, key: int) -> None:
        piece = self._pieces.pop(key, None)
        if piece is None:
            return
        self._count(piece, -1)
        if piece.kind == "card":
            self.hazards += release(piece.lane, piece.uses, piece.bytes)
        elif piece.kind == "pinned":
            self.hazards += release(self.thread, piece.uses, piece.bytes)

    def unpin(self, storage: torch.UntypedStorage) -> None:
        """Give pinned pages back. A copy that still reads them would fail."""
        piece = self._pieces[storage._cdata]
        if piece.kind == "pinned":
            self.hazards += release(self.thread, piece.uses, piece.bytes)
            self.change_kind(storage, "ram")

    # Operations

    def operate(self, reads: Iterable[Piece], writes: Iterable[Piece], name: str, *, copies: int, waits: bool) -> None:
        """An operation, which runs where its memory is. ``copies``: bytes if it crosses the bus."""
        reads, writes = list(reads), list(writes)
        kinds = {piece.kind for piece in (*reads, *writes)}
        pairs = [(piece.uses, piece.bytes) for piece in reads], [(piece.uses, piece.bytes) for piece in writes]
        if "card" not in kinds:
            self.hazards += access(self.thread, *pairs, name)
            return
        self.stream.come_after(self.thread.seen)
        self.hazards += access(self.stream, *pairs, name)
        if not copies:
            return
        upward = any(piece.kind == "card" for piece in writes)
        from_pinned = all(piece.kind in ("card", "pinned") for piece in reads)
        if upward:
            self.to_card += copies
            self.unpinned_to_card += 0 if from_pinned else copies
        if waits or (upward and not from_pinned):
            self.thread.come_after(self.stream.seen)


def pieces_of(machine: SimulatedMachine, tensors: Iterable[Any]) -> list[Piece]:
    """The pieces that ``tensors`` are in."""
    return [machine.piece(tensor.untyped_storage(), tensor.device) for tensor in tensors]
