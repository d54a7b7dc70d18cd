"""Lets dropped modules go at once, instead of with the next full garbage collection, which may never come."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

HOOKS = "_diffusers_hook"
"""Where diffusers keeps a module's HookRegistry, which refers back to the module (hooks/hooks.py). Its FLUX pipelines
make one in their first step, for ``cache_context``."""


@contextmanager
def let_go(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """What is dropped inside is gone afterwards: known cycles are cut, and for others the collector runs."""
    gone = []
    for module in modules:
        for part in module.modules():
            part.__dict__.pop(HOOKS, None)
        gone.append(weakref.ref(module))
    module = part = None
    yield
    if any(reference() is not None for reference in gone):
        gc.collect()
