"""What only some versions of ComfyUI's memory manager have is used where it is, and not missed where it is not."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.pack.pipelines import borrow, handle_for

pytestmark = pytest.mark.usefixtures("comfy_modules")
NEWER = ("is_oom", "ensure_pin_budget", "ensure_pin_registerable", "free_pins")


@pytest.fixture
def mm(comfy_modules: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """ComfyUI's memory manager without what newer versions have: a test adds what it is about."""
    import comfy.model_management

    for name in NEWER:
        monkeypatch.delattr(comfy.model_management, name, raising=False)
    return comfy.model_management


@pytest.mark.parametrize(
    ("checks", "allowed"),
    [
        pytest.param({}, True, id="no checks: pin_memory checks by itself"),
        pytest.param({"ensure_pin_budget": True, "ensure_pin_registerable": True}, True, id="both agree"),
        pytest.param({"ensure_pin_budget": False, "ensure_pin_registerable": True}, False, id="too little RAM"),
        pytest.param({"ensure_pin_budget": True, "ensure_pin_registerable": False}, False, id="too much is pinned"),
        pytest.param({"ensure_pin_registerable": False}, False, id="only one check"),
    ],
)
def test_pinning_heeds_a_refusal(
    mm: Any, monkeypatch: pytest.MonkeyPatch, checks: dict[str, bool], allowed: bool
) -> None:
    from neurolux.memory.backends.cuda import CudaBackend

    pinned: list[int] = []
    monkeypatch.setattr(mm, "pin_memory", lambda memory: pinned.append(memory.nbytes) or True)
    for name, answer in checks.items():
        monkeypatch.setattr(mm, name, lambda size, answer=answer: answer, raising=False)
    assert CudaBackend().pin(torch.zeros(1 << 20, dtype=torch.uint8)) is allowed
    assert pinned == [1 << 20] * allowed


class Accelerator(Exception):
    """As ``torch.AcceleratorError`` in versions where it is no RuntimeError; only the manager knows it."""


@pytest.mark.parametrize(
    ("error", "newer", "older"),
    [
        pytest.param(torch.OutOfMemoryError("x"), True, True, id="torch"),
        pytest.param(MemoryError(), True, True, id="Python"),
        pytest.param(RuntimeError("DefaultCPUAllocator: can't allocate memory"), True, True, id="torch on a CPU"),
        pytest.param(Accelerator("error 2"), True, False, id="what only the manager knows"),
        pytest.param(RuntimeError("shapes differ"), False, False, id="another error"),
    ],
)
def test_an_error_of_memory_is_one_that_the_manager_says_is(
    mm: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, newer: bool, older: bool
) -> None:
    from neurolux.memory.backends.base import DeviceBackend

    assert DeviceBackend().is_out_of_memory(error) is older
    monkeypatch.setattr(mm, "is_oom", lambda error: isinstance(error, Accelerator), raising=False)
    assert DeviceBackend().is_out_of_memory(error) is newer


def loaded(model: object, *, dynamic: bool, ram: int) -> SimpleNamespace:
    """An entry of the manager's list, with core's streamed model or another one."""
    patcher = SimpleNamespace(model=model, is_dynamic=lambda: dynamic, loaded_ram_size=lambda: ram)
    return SimpleNamespace(model=patcher)


def test_core_s_pinned_copies_count_as_free_ram_and_go_first(mm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from neurolux.loading.store import PipelineStore
    from neurolux.memory.machine import this_machine
    from neurolux.memory.manager import core_pinned_copies

    model, cpu = object(), torch.device("cpu")
    entries = [loaded(model, dynamic=True, ram=1000), loaded(model, dynamic=True, ram=1000)]  # a clone shares them
    entries += [loaded(object(), dynamic=True, ram=500), loaded(object(), dynamic=False, ram=7)]
    monkeypatch.setattr(mm, "current_loaded_models", [*entries, SimpleNamespace(model=None)])
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=10_000, available=4000))
    assert (core_pinned_copies(), this_machine(cpu).free_ram) == (0, 4000)
    freed: list[int] = []
    monkeypatch.setattr(mm, "free_pins", lambda size, evict_active: freed.append(size) or size, raising=False)
    assert (core_pinned_copies(), this_machine(cpu, droppable_ram=3).free_ram) == (1500, 5503)
    PipelineStore()._free_ram(4000)
    assert freed == []
    PipelineStore()._free_ram(4600)
    assert freed == [600]


class Bytes:
    """A node cache that counts in bytes."""

    def ram_release(self, target: int, free_active: bool = False, min_entry_size: int = 0) -> int:
        return 100


class Gibibytes:
    """An older one."""

    def poll(self, ram_headroom: float) -> None:
        pass


@pytest.mark.parametrize(
    ("cache", "call", "headroom", "asked", "returned"),
    [
        pytest.param(Bytes, lambda cache: cache.ram_release(5000), 0, [5000], 107, id="outside of a prompt"),
        pytest.param(Bytes, lambda cache: cache.ram_release(5000), 3000, [3000], 107, id="more than the headroom"),
        pytest.param(Bytes, lambda cache: cache.ram_release(2000), 3000, [2000], 107, id="less than the headroom"),
        pytest.param(
            Bytes, lambda cache: cache.ram_release(9, free_active=True, min_entry_size=3), 0, [9], 107, id="all options"
        ),
        pytest.param(Gibibytes, lambda cache: cache.poll(ram_headroom=1.5), 0, [3 << 29], None, id="an older cache"),
        pytest.param(object, lambda cache: None, 0, [], None, id="a cache that never asks"),
    ],
)
def test_weights_are_asked_for_when_the_node_cache_makes_ram_free(
    monkeypatch: pytest.MonkeyPatch, cache: type, call: Any, headroom: int, asked: list[int], returned: int | None
) -> None:
    import comfy
    from neurolux.memory import manager

    requests: list[int] = []
    own = type("Own", (cache,), {})
    state = SimpleNamespace(RAM_CACHE_HEADROOM=headroom)
    monkeypatch.setattr(comfy, "memory_management", state, raising=False)
    manager.on_ram_request(own, lambda target: requests.append(target) or 7)
    assert (call(own()), requests) == (returned, asked)


def test_this_comfyui_s_node_cache_can_be_listened_to(comfy_modules: None) -> None:
    source = (Path(__import__("comfy").__path__[0]).parent / "comfy_execution" / "caching.py").read_text()
    assert "class RAMPressureCache(" in source
    assert "def ram_release(self, target" in source or "def poll(self, ram_headroom)" in source


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes of RAM that the machine says are available, one number for each time it is asked; the last one stays."""
    answers = [0]
    monkeypatch.setattr(
        "psutil.virtual_memory",
        lambda: SimpleNamespace(total=1 << 40, available=answers.pop(0) if len(answers) > 1 else answers[0]),
    )
    yield answers


@pytest.mark.parametrize(
    ("live", "answers", "left"),
    [
        pytest.param([], [1000], ["tiny-flux-dev", "tiny-flux-schnell", "tiny-sdxl"], id="nothing is short"),
        pytest.param([], [0], [], id="all are idle"),
        pytest.param([], [0, 1000], ["tiny-flux-schnell", "tiny-sdxl"], id="least recently used first, until enough"),
        pytest.param([0], [0, 1000], ["tiny-flux-dev", "tiny-sdxl"], id="a live handle stays"),
        pytest.param([0, 1, 2], [0], ["tiny-flux-dev", "tiny-flux-schnell", "tiny-sdxl"], id="all are live"),
    ],
)
def test_idle_pipelines_are_given_back_when_ram_is_short(
    tiny_models: dict[str, Path],
    unloaded: None,
    monkeypatch: pytest.MonkeyPatch,
    live: list[int],
    answers: list[int],
    left: list[str],
) -> None:
    from neurolux.loading.store import pipelines

    names = ["tiny-flux-dev", "tiny-flux-schnell", "tiny-sdxl"]
    handles = [handle_for(tiny_models[name]) for name in names]
    sizes = [borrow(handle).ram_bytes for handle in handles]
    kept = [handles[index] for index in live]
    del handles
    gc.collect()
    said = list(answers)
    memory = lambda: SimpleNamespace(total=1 << 40, available=said.pop(0) if len(said) > 1 else said[0])  # noqa: E731
    monkeypatch.setattr("psutil.virtual_memory", memory)
    given = pipelines.give_back(1000)
    assert sorted(pipelines.loaded_models()) == left
    assert given == sum(size for name, size in zip(names, sizes, strict=True) if name not in left)
    assert len(kept) == len(live)


def test_a_pipeline_at_work_stays(tiny_models: dict[str, Path], unloaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from neurolux.loading.store import pipelines

    entry = borrow(handle_for(tiny_models["tiny-flux-dev"]))
    gc.collect()
    monkeypatch.setattr(type(entry.placement), "busy", True)
    assert pipelines.give_back(1 << 60) == 0
    monkeypatch.undo()
    assert pipelines.give_back(1 << 60) > 0
