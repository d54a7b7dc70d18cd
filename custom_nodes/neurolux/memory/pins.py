"""How much RAM a pipeline may pin: pinned pages cannot be swapped, so all programs share what is left."""

from __future__ import annotations

from collections.abc import Callable

ROUNDING = 1.05
"""A plan counts weights without the gaps between them in a buffer."""


class PinBudget:
    """What of ``limit`` bytes, which may change, is taken."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self.taken = 0

    def take(self, size: int) -> bool:
        """Take ``size`` bytes if there are so many."""
        if self.taken + size > self._limit() * ROUNDING:
            return False
        self.taken += size
        return True

    def give_back(self, size: int) -> None:
        """Return what ``take`` gave."""
        self.taken -= size
