"""The store of modules beside pipelines: loaded once, bounded, and given back when memory is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from neurolux.memory.module_store import LoadedModule, ModuleKey, ModuleKind
    from neurolux.weights.stamps import FileStamp

pytestmark = pytest.mark.usefixtures("comfy_modules")


def file_named(name: str, modified: int = 1) -> FileStamp:
    from neurolux.weights.stamps import FileStamp

    return FileStamp(name, Path("models", name), modified, 100)


def key_of(kind: ModuleKind, file: FileStamp, device: str = "cpu") -> ModuleKey:
    from neurolux.memory.module_store import ModuleKey

    return ModuleKey(kind, file, torch.float32, torch.device(device))


def build(key: ModuleKey) -> LoadedModule:
    """A small module that computes on the CPU, whatever device its key names."""
    from neurolux.memory.module_store import LoadedModule
    from neurolux.memory.patcher import ComponentPatcher

    cpu = torch.device("cpu")
    return LoadedModule(key, torch.nn.Linear(2, 2), ComponentPatcher(torch.nn.Linear(2, 2), cpu, cpu))


def test_a_module_is_built_once_and_a_key_that_comes_twice_is_one() -> None:
    from neurolux.memory.module_store import ModuleStore

    store, key = ModuleStore(), key_of("controlnet", file_named("a"))
    first, second = store.acquire([key, key], build)
    (third,) = store.acquire([key], build)
    assert first is second is third


@pytest.mark.parametrize(("kind", "unused"), [("controlnet", 2), ("motion", 1), ("preprocessor", 3)])
def test_so_many_unused_modules_of_a_kind_stay_the_last_used_ones(kind: ModuleKind, unused: int) -> None:
    from neurolux.memory.module_store import ModuleStore

    store = ModuleStore()
    other = key_of("motion" if kind != "motion" else "controlnet", file_named("other"))
    store.acquire([other], build)
    keys = [key_of(kind, file_named(str(number))) for number in range(6)]
    for key in keys:
        store.acquire([key], build)
    assert store.keys(kind) == keys[-unused - 1 :]
    assert store.get(other) is not None  # kinds do not push each other out


def test_a_replaced_file_leaves_with_its_old_version() -> None:
    from neurolux.memory.module_store import ModuleStore

    store = ModuleStore()
    old, new = (key_of("preprocessor", file_named("depth", modified)) for modified in (1, 2))
    store.acquire([old], build)
    store.acquire([new], build)
    assert store.keys() == [new]


@pytest.mark.parametrize(
    ("device", "wanted", "stays"),
    [("cpu", True, False), ("cpu", False, False), ("cuda", True, True), ("cuda", False, False)],
)
def test_what_the_manager_took_goes_unless_a_gpu_needs_it_again(device: str, wanted: bool, stays: bool) -> None:
    from neurolux.memory.module_store import ModuleStore

    store, file = ModuleStore(), file_named("a")
    key = key_of("motion", file, device)
    (entry,) = store.acquire([key], build)
    store.sweep()
    assert store.get(key) is entry  # nobody has asked for its memory
    entry.patcher.detach()
    store.sweep({file} if wanted else ())
    assert (store.get(key) is entry) == stays


def test_a_sweep_of_one_kind_leaves_the_others() -> None:
    from neurolux.memory.module_store import ModuleStore

    store = ModuleStore()
    keys = [key_of("preprocessor", file_named("depth")), key_of("controlnet", file_named("canny"))]
    for key in keys:
        (entry,) = store.acquire([key], build)
        entry.patcher.detach()
    store.sweep(kind="preprocessor")
    assert store.keys() == keys[1:]


def test_memory_is_measured_by_kind_and_file() -> None:
    from neurolux.memory.module_store import ModuleStore

    store = ModuleStore()
    (entry,) = store.acquire([key_of("controlnet", file_named("canny"))], build)
    (before,) = store.memory("controlnet")["canny"]
    entry.patcher.load()
    (after,) = store.memory("controlnet")["canny"]
    assert (before.component, before.storage, before.bytes, before.device_bytes) == ("controlnet", "fp32", 24, 0)
    assert after.device_bytes == after.bytes
    assert store.memory("motion") == {}
