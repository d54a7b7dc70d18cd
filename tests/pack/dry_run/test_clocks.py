"""The checker of a dry run itself: what it must notice, and what is in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("comfy_modules")
GB = 10**9


@contextmanager
def card() -> Iterator[tuple[Any, Any]]:
    """A simulated machine and its backend."""
    from neurolux.dry_run.card import SimulatedMachine
    from neurolux.dry_run.device import SimulatedBackend
    from neurolux.dry_run.tensors import simulated_tensors

    machine = SimulatedMachine(8 * GB, 32 * GB)
    with simulated_tensors(machine), torch.no_grad():
        yield machine, SimulatedBackend(machine)


Parts = tuple[Any, Any, torch.Tensor, torch.Tensor]


def in_order(machine: Any, copies: Any, source: torch.Tensor, target: torch.Tensor) -> None:
    copies.wait(copies.copy(target, source, copies.mark()))
    _ = target + 1
    copies.wait(copies.copy(target, source, copies.mark()))


def computes_before_the_copy_ended(machine: Any, copies: Any, source: torch.Tensor, target: torch.Tensor) -> None:
    copies.copy(target, source, copies.mark())
    _ = target + 1


def overwrites_what_is_computed_with(machine: Any, copies: Any, source: torch.Tensor, target: torch.Tensor) -> None:
    _ = target + 1
    copies.copy(target, source, None)


def overwrites_what_is_copied_from(machine: Any, copies: Any, source: torch.Tensor, target: torch.Tensor) -> None:
    copies.copy(target, source, copies.mark())
    source.zero_()


def unpins_what_is_copied_from(machine: Any, copies: Any, source: torch.Tensor, target: torch.Tensor) -> None:
    copies.copy(target, source, copies.mark())
    machine.unpin(source.untyped_storage())


@pytest.mark.parametrize(
    ("work", "found"),
    [
        (in_order, None),
        (computes_before_the_copy_ended, "read before it was written"),
        (overwrites_what_is_computed_with, "written while in use"),
        (overwrites_what_is_copied_from, "written while in use"),
        (unpins_what_is_copied_from, "freed while in use"),
    ],
)
def test_an_access_that_comes_too_early_is_noticed(work: Callable[..., None], found: str | None) -> None:
    with card() as (machine, backend):
        source = backend.host_memory(2 << 20, pin=True)
        target = torch.empty(2 << 20, dtype=torch.uint8, device="cuda")
        copies = backend.copies(target.device)
        work(machine, copies, source.data, target)
        copies.finish()
        machine.thread.come_after(machine.computing.seen)
        hazards = [str(hazard) for hazard in machine.hazards]
    if found is None:
        assert hazards == []
    else:
        assert hazards
        assert all(found in hazard for hazard in hazards)


def test_a_buffer_that_is_freed_while_it_is_copied_into_is_noticed() -> None:
    with card() as (machine, backend):
        target = torch.empty(2 << 20, dtype=torch.uint8, device="cuda")
        copies = backend.copies(target.device)
        copies.copy(target, backend.host_memory(2 << 20, pin=True).data, copies.mark())
        del target
        assert {hazard.what for hazard in machine.hazards} == {"freed while in use"}
        copies.finish()


def test_memory_is_counted_by_kind() -> None:
    with card() as (machine, backend):
        kept = [
            torch.empty(100, dtype=torch.uint8, device="cuda"),
            torch.empty(100, dtype=torch.uint8),
            backend.host_memory(2 << 20, pin=True),
            backend.mapped_tensor((100,), torch.uint8),
        ]
        assert machine.alive == {"card": 512, "ram": 100, "pinned": 2 << 20, "mapped": 100}
        kept.clear()
        assert set(machine.alive.values()) == {0}


def test_a_card_that_is_full_says_so() -> None:
    with card() as (machine, _), pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 8000 MB"):
        torch.empty(8 * GB, dtype=torch.uint8, device="cuda")
    assert machine.alive["card"] == 0
