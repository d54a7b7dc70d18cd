"""Who may touch which memory when: vector clocks of the host's threads and the card's streams.

Each lane (a thread, a stream) counts its own operations, and knows up to which operation of each other lane it comes
after. An access is safe if the lane comes after all that it must not overtake: a reader after the last writer, a writer
after the last writer and all readers since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Moment(NamedTuple):
    """One operation of a lane."""

    lane: str
    number: int


class Lane:
    """A thread of the host or a stream of the card."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: dict[str, int] = {name: 0}

    def come_after(self, seen: Mapping[str, int]) -> None:
        """All later operations of this lane come after what ``seen`` says."""
        for name, count in seen.items():
            if count > self.seen.get(name, 0):
                self.seen[name] = count

    def advance(self) -> Moment:
        """The lane's next operation."""
        self.seen[self.name] += 1
        return Moment(self.name, self.seen[self.name])

    def is_after(self, moment: Moment | None) -> bool:
        """Whether the lane's next operation comes after ``moment``."""
        return moment is None or self.seen.get(moment.lane, 0) >= moment.number


@dataclass
class Uses:
    """The last accesses to one piece of memory."""

    written: Moment | None = None
    read: dict[str, int] = field(default_factory=dict)
    """Since it was written, by lane: the last reading operation."""

    def readers(self) -> Iterable[Moment]:
        """The last reads."""
        return (Moment(lane, count) for lane, count in self.read.items())


Sized = tuple[Uses, int]
"""A piece of memory and its bytes."""


@dataclass(frozen=True)
class Hazard:
    """An access that may come too early."""

    what: str
    operation: str
    bytes: int
    lane: str
    overtakes: Moment

    def __str__(self) -> str:
        return f"{self.what}: {self.operation} of {self.bytes} bytes on {self.lane} overtakes {self.overtakes.lane}"


def access(lane: Lane, reads: Iterable[Sized], writes: Iterable[Sized], name: str) -> list[Hazard]:
    """Note an operation ``name`` of ``lane``; returns what it overtakes."""
    hazards = []
    now = lane.advance()
    for uses, size in reads:
        if not lane.is_after(uses.written):
            assert uses.written is not None
            hazards.append(Hazard("read before it was written", name, size, lane.name, uses.written))
        uses.read[lane.name] = now.number
    for uses, size in writes:
        earlier = [uses.written] if uses.written is not None else []
        earlier += [reader for reader in uses.readers() if reader.lane != lane.name]
        hazards += [
            Hazard("written while in use", name, size, lane.name, moment)
            for moment in earlier
            if not lane.is_after(moment)
        ]
        uses.written, uses.read = now, {lane.name: now.number}
    return hazards


def release(lane: Lane, uses: Uses, size: int) -> list[Hazard]:
    """What giving memory back overtakes, if its next user comes after ``lane`` alone."""
    last = [*uses.readers(), *([uses.written] if uses.written is not None else [])]
    early = [moment for moment in last if not lane.is_after(moment)]
    return [Hazard("freed while in use", "free", size, lane.name, moment) for moment in early]
