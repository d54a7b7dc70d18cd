"""What only some versions of ComfyUI's memory manager have: looked for, never asked of a version number.

Newer managers load core's models block by block ("DynamicVRAM"): their copies in pinned RAM can be given back at any
time, pinning has a budget, and the node cache is emptied when RAM runs short.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import comfy.model_management as mm

Release = Callable[[int], int]
"""Gives RAM back until so many bytes are available, and returns how many bytes it gave."""


def offered(name: str) -> Callable[..., Any] | None:
    """The manager's function of that name; None where this version has none."""
    return getattr(mm, name, None)


def manager_says_out_of_memory(error: BaseException) -> bool:
    """Whether the manager takes ``error`` for one of memory. It also clears what CUDA keeps of such an error."""
    asked = offered("is_oom")
    return isinstance(error, MemoryError) or (asked is not None and asked(error))


def may_pin(size: int) -> bool:
    """Whether ``size`` more bytes may be pinned. Older managers check it themselves, as they pin."""
    checks = (offered(name) for name in ("ensure_pin_budget", "ensure_pin_registerable"))
    return all(check(size) for check in checks if check is not None)


def core_pinned_copies() -> int:
    """Bytes of RAM that core's models take as copies for streaming, and could give back."""
    if offered("free_pins") is None:
        return 0
    models = {id(loaded.model.model): loaded.model for loaded in list(mm.current_loaded_models) if loaded.model}
    return sum(int(model.loaded_ram_size()) for model in models.values() if model.is_dynamic())


def free_core_pinned_copies(size: int) -> None:
    """Have core's models give back up to ``size`` bytes of ``core_pinned_copies``. They read their files again."""
    free_pins = offered("free_pins")
    if free_pins is not None and size > 0:
        free_pins(size, evict_active=True)


def on_ram_request(cache: Any, release: Release) -> None:
    """Call ``release`` whenever ComfyUI's node cache (a class of ``comfy_execution.caching``) makes RAM free.

    ComfyUI has no callback for it. Outputs of graphs that do not run go in any case, so the cache asks for far more
    than it needs; what it needs is its headroom.
    """
    if (original := getattr(cache, "ram_release", None)) is not None:  # target in bytes

        @wraps(original)
        def ram_release(self: Any, target: int, *args: Any, **kwargs: Any) -> int:
            freed = original(self, target, *args, **kwargs)
            return freed + release(min(target, ram_headroom() or target))

        cache.ram_release = ram_release
    elif (original := getattr(cache, "poll", None)) is not None:  # headroom in GiB

        @wraps(original)
        def poll(self: Any, ram_headroom: float) -> None:
            original(self, ram_headroom)
            release(int(ram_headroom * 2**30))

        cache.poll = poll


def ram_headroom() -> int:
    """Bytes of RAM that the running prompt is to leave free; 0 where nobody says."""
    return int(getattr(sys.modules.get("comfy.memory_management"), "RAM_CACHE_HEADROOM", 0))
