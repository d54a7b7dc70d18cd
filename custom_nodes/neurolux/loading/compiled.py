"""torch.compile for the denoiser's repeated blocks, for the graphs that ask for it.

Compiled and plain blocks share their weights: a call is compiled only while a stage that wants it is at work, so a
graph with ``compile`` and one without use the same loaded model, and neither loads anything again.

Compiling never stops an image. Where it cannot be had, the image is made by the plain blocks, and a warning says why
and what to do.
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
    """``work``, by compiled blocks if they are wanted and can be had. Its components are on the device already."""
    blocks = loaded.compiled
    if not blocks.wanted:
        return work()
    import torch._dynamo.exc

    obstacle = blocks.failure or missing_compiler(loaded.device) or streamed(loaded)
    if obstacle is None:
        try:
            with at_work(blocks, loaded.denoiser):
                return work()
        except torch._dynamo.exc.TorchDynamoException as error:
            _log.exception("NeuroLux: compiling %s failed", loaded.model.name)
            blocks.calls.clear()
            obstacle = blocks.failure = f"it failed ({first_lines(error)}); the log says where. Switch it off"
    loaded.unreported_warnings.append(f"compile has no effect on {loaded.model.name}: {obstacle}")
    return work()


@contextmanager
def at_work(blocks: CompiledBlocks, denoiser: Any) -> Iterator[None]:
    """Meanwhile the repeated blocks' calls are the compiled ones.

    Not kept on the modules: their calls hold the modules, and such a cycle would keep a dropped model's weights in
    memory until the garbage collector comes by. Nor may hooks be added under a compiled call (torch does not
    notice them), which streaming does as soon as the manager takes a block away.
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


def streamed(loaded: LoadedPipeline) -> str | None:
    """Why a denoiser whose weights come and go under its blocks is not compiled; None where all stay in place."""
    if loaded.placement.in_place(loaded.denoiser_name):
        return None
    return (
        f"its {loaded.denoiser_name} is streamed (offload {loaded.placement.mode}), and compiled blocks need their "
        "weights in place. Choose offload none or model, with fewer bits (precision) if that does not fit"
    )


def missing_compiler(device: torch.device) -> str | None:
    """What torch.compile lacks on this machine, and the remedy; None where it is complete."""
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
    """What happened (torch's first line names only the compiler), without the traceback that follows in the message."""
    return " ".join(str(error).split("\n")[:2]).strip()[:300] or type(error).__name__
