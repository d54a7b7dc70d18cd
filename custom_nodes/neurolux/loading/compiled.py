"""Runs the denoiser's repeated blocks with torch.compile, for graphs that enable it.

Compiled and plain blocks share their weights. Calls are compiled only while a stage that enables it runs, so a graph
with ``compile`` and one without use the same loaded model, and neither reloads anything.

Compiling never fails a request. If it is not possible, the plain blocks run, and a warning says why and what to do.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from ..memory.streaming import CPU
from .loaded import CompiledBlocks, LoadedPipeline

T = TypeVar("T")
BACKEND: str | Callable[..., Any] = "inductor"
_log = logging.getLogger(__name__)


def run_compiled(loaded: LoadedPipeline, work: Callable[[], T]) -> T:
    """Run ``work`` with compiled blocks if they are enabled and possible. The components are already on the device."""
    blocks = loaded.compiled
    if not blocks.enabled:
        return work()
    import torch._dynamo.exc

    obstacle = blocks.failure or missing_compiler(loaded.device) or streaming_obstacle(loaded)
    if obstacle is None:
        try:
            with at_work(blocks, loaded.denoiser):
                return work()
        except torch._dynamo.exc.TorchDynamoException as error:
            _log.exception("NeuroLux: compiling %s failed", loaded.model.name)
            blocks.calls.clear()
            obstacle = blocks.failure = f"it failed ({first_lines(error)}); see the log for details. Switch it off"
    loaded.unreported_warnings.append(f"compile has no effect on {loaded.model.name}: {obstacle}")
    return work()


@contextmanager
def at_work(blocks: CompiledBlocks, denoiser: Any) -> Iterator[None]:
    """Calls of the repeated blocks are compiled inside this context.

    The compiled calls are not kept on the modules. They refer to the modules, and such a cycle would keep the weights
    of a dropped model in memory until the next garbage collection. Also, torch ignores hooks that are added after a
    call was compiled, and streaming adds hooks as soon as ComfyUI's manager evicts a block.
    """
    if not blocks.calls:
        denoiser.compile_repeated_blocks(backend=BACKEND)
        blocks.calls = [(block, block._compiled_call_impl) for block in denoiser.modules() if block._compiled_call_impl]
    try:
        for block, call in blocks.calls:
            block._compiled_call_impl = call
        yield
    finally:
        for block, _ in blocks.calls:
            block._compiled_call_impl = None


def streaming_obstacle(loaded: LoadedPipeline) -> str | None:
    """Why a denoiser with streamed weights is not compiled; None if all its weights stay in place."""
    if loaded.placement.in_place(loaded.denoiser_name):
        return None
    return (
        f"its {loaded.denoiser_name} is streamed (offload {loaded.placement.mode}), and compiled blocks need their "
        "weights in place. Choose offload none or model, with fewer bits (precision) if that does not fit"
    )


def missing_compiler(device: torch.device) -> str | None:
    """What torch.compile lacks on this machine, and the remedy; None if it lacks nothing."""
    found = shutil.which(os.environ.get("CXX") or ("cl" if os.name == "nt" else "c++")) or shutil.which("g++")
    if device.type == CPU.type:
        if found is None:
            return "torch.compile needs a C++ compiler and finds none. Install one (g++), or switch compile off"
        return None
    if importlib.util.find_spec("triton") is None:
        return "torch.compile needs the package triton on a GPU. Install it (triton-windows on Windows), or switch off"
    if not any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang", "cl"))):
        return "triton needs a C compiler and finds none. Install one (gcc), or switch compile off"
    return None


def first_lines(error: BaseException) -> str:
    """The first two lines of the message (the first only names the compiler), without the traceback in it."""
    return " ".join(str(error).split("\n")[:2]).strip()[:300] or type(error).__name__
