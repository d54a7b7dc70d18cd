"""Fake tensors on a card that is not there, and every operation on them reported to the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from .card import SimulatedMachine, pieces_of

COPIES = ("aten::copy_", "aten::_to_copy")


def no_modes() -> Any:
    """A context in which tensors are real: for what only builds shapes, or reads numbers."""
    return _disable_current_modes()


def fakes(values: Any) -> list[FakeTensor]:
    """The fake tensors in nested lists, tuples and dicts."""
    if isinstance(values, FakeTensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (tuple, list)):
        return []
    return [found for value in values for found in fakes(value)]


class Reported(TorchDispatchMode):
    """Reports what every operation reads and writes."""

    def __init__(self, machine: SimulatedMachine) -> None:
        super().__init__()
        self.machine = machine
        self._mutable: dict[Any, list[int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function.is_view:
            return result
        machine = self.machine
        given, made = fakes((args, kwargs)), fakes(result)
        if not given and not made:
            return result
        reads = pieces_of(machine, given)
        known = {id(piece) for piece in reads}
        writes = [piece for piece in pieces_of(machine, made) if id(piece) not in known]
        for place in self._changed(function):
            if place < len(args) and isinstance(args[place], FakeTensor):
                writes.append(machine.piece(args[place].untyped_storage(), args[place].device))
        if not writes:
            return result
        name = function.name()
        if name.startswith("aten::copy_"):
            reads = [piece for piece in reads if piece not in writes]
        copies = self._copied(name, given, made)
        machine.operate(reads, writes, name, copies=copies, waits=not non_blocking(name, args, kwargs))
        return result

    def _changed(self, function: Any) -> list[int]:
        """Which arguments ``function`` writes to."""
        found = self._mutable.get(function)
        if found is None:
            arguments = function._schema.arguments if function._schema.is_mutable else ()
            found = [
                place for place, argument in enumerate(arguments)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]  # fmt: skip
            self._mutable[function] = found
        return found

    def _copied(self, name: str, given: list[FakeTensor], made: list[FakeTensor]) -> int:
        if not name.startswith(COPIES) or not made:
            return 0
        devices = {tensor.device.type for tensor in (*given, *made)}
        return made[0].numel() * made[0].element_size() if devices == {"cuda", "cpu"} else 0


def non_blocking(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a copy lets the host go on."""
    return bool(kwargs.get("non_blocking")) or (name.startswith("aten::copy_") and len(args) > 2 and bool(args[2]))


_plain_tensor = torch.tensor


def tensor_on_card(data: Any, **options: Any) -> torch.Tensor:
    """``torch.tensor``, which would look for a driver."""
    device = options.pop("device", None)
    if device is None or torch.device(device).type != "cuda":
        return _plain_tensor(data, device=device, **options)
    with no_modes():
        made = _plain_tensor(data, **options)
    return torch.empty(made.shape, dtype=made.dtype, device=device)


_plain_linspace = torch.linspace


def real_linspace(*args: Any, **options: Any) -> torch.Tensor:
    """``torch.linspace``, with its numbers: pipelines make lists of them for their schedules."""
    device = options.get("device")
    if device is not None and torch.device(device).type == "cuda":
        return _plain_linspace(*args, **options)
    with no_modes():
        return _plain_linspace(*args, **options)


def fused_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """As on a card: it keeps no matrix of scores."""
    return torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)


def needs_no_driver(*_: Any, **__: Any) -> None:
    """What torch does before it makes the first tensor of a card."""


def has_nothing_wrong(tensor: FakeTensor) -> bool:
    """What a check of its values finds."""
    return True


class FakeData:
    """``Tensor.data`` of a fake tensor, whose own setter forgets the device."""

    def __get__(self, tensor: Any, owner: Any = None) -> Any:
        return torch.Tensor.data.__get__(tensor)  # pyright: ignore[reportAttributeAccessIssue]

    def __set__(self, tensor: Any, value: Any) -> None:
        torch.Tensor.data.__set__(tensor, value)  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(value, FakeTensor):
            tensor.fake_device = value.fake_device


@contextmanager
def simulated_tensors(machine: SimulatedMachine) -> Iterator[None]:
    """Tensors are fake meanwhile, and ``machine`` counts them."""
    torch._C._ensureCUDADeviceGuardSet()
    # torch keeps, from the first use of a device as a context, the functions that such a context changes: these must
    # be its own, or every model that transformers loads afterwards in this process lacks its position ids
    with torch.device("meta"):
        torch.empty(0)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", needs_no_driver))
        stack.enter_context(mock.patch.object(FakeTensor, "data", FakeData(), create=True))
        # "are all values finite?": they have none, so nothing is wrong with them
        stack.enter_context(mock.patch.object(FakeTensor, "__bool__", has_nothing_wrong, create=True))
        stack.enter_context(mock.patch.object(torch, "tensor", tensor_on_card))
        stack.enter_context(mock.patch.object(torch, "linspace", real_linspace))
        stack.enter_context(mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", fused_attention))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(Reported(machine))
        yield
