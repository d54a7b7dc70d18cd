"""The seam between the pack and the device: who may speak to torch.cuda, psutil and the CUDA runtime."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

PACK = Path(__file__).parents[3] / "custom_nodes" / "neurolux"
SEAM = (PACK / "memory" / "backends", PACK / "memory" / "manager.py")
"""The backends, and what of ComfyUI's manager differs from version to version."""
TORCH_ROOMS = {"cuda", "mps", "xpu", "npu", "accelerator", "mtia", "hip"}
DEVICE_LIBRARIES = {"psutil", "pynvml", "cuda", "ctypes"}
MANAGER_CALLS = {
    "get_free_memory", "get_total_memory", "should_use_bf16", "should_use_fp16", "pin_memory", "unpin_memory",
    "PINNED_MEMORY", "TOTAL_PINNED_MEMORY", "MAX_PINNED_MEMORY", "OOM_EXCEPTION",
}  # fmt: skip


def direct_uses(source: str) -> Iterator[str]:
    """What in a module speaks to a device itself."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = node.value.id
            if (owner == "torch" and node.attr in TORCH_ROOMS) or (owner == "mm" and node.attr in MANAGER_CALLS):
                yield f"line {node.lineno}: {owner}.{node.attr}"
        elif isinstance(node, ast.Import):
            for name in node.names:
                parts = name.name.split(".")
                if parts[0] in DEVICE_LIBRARIES or (parts[0] == "torch" and TORCH_ROOMS & set(parts)):
                    yield f"line {node.lineno}: import {name.name}"
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            parts = node.module.split(".")
            named = {name.name for name in node.names}
            if parts[0] in DEVICE_LIBRARIES or (parts[0] == "torch" and TORCH_ROOMS & {*parts, *named}):
                yield f"line {node.lineno}: from {node.module}"


@pytest.mark.parametrize(
    "source",
    [
        "import psutil",
        "from psutil import virtual_memory",
        "import torch.cuda",
        "from torch import cuda",
        "from torch.cuda import Stream",
        "import torch\ntorch.cuda.synchronize()",
        "import torch\nx: torch.cuda.Event",
        "import torch\ntorch.mps.empty_cache()",
        "import torch\ntorch.cuda.cudart().cudaHostRegister(0, 0, 0)",
        "import ctypes",
        "import comfy.model_management as mm\nmm.pin_memory(x)",
        "import comfy.model_management as mm\nmm.get_free_memory()",
    ],
)
def test_each_form_of_a_direct_use_is_noticed(source: str) -> None:
    assert list(direct_uses(source))


def test_only_the_backends_speak_to_the_device() -> None:
    found = {
        str(path.relative_to(PACK)): uses
        for path in sorted(PACK.rglob("*.py"))
        if not any(path.is_relative_to(place) for place in SEAM)
        and (uses := list(direct_uses(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_every_way_to_run_out_of_memory_is_known(comfy_modules: None, error: Exception, is_one: bool) -> None:
    from neurolux.memory.backends.choice import backend

    assert backend().is_out_of_memory(error) == is_one


def test_a_refused_pin_leaves_no_error_for_the_next_operation(
    comfy_modules: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as mm
    from neurolux.memory.backends.cuda import CudaBackend

    queued: list[str] = []

    class Runtime:
        """A CUDA runtime that pins nothing."""

        def cudaHostRegister(self, *_: int) -> int:  # noqa: N802 - CUDA's name
            queued.append("invalid argument")
            return 1

    def zeros(*_: int, **__: object) -> torch.Tensor:
        if queued:
            raise torch.AcceleratorError(f"CUDA error: {queued.pop()}")
        return torch.ones(1)

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch, "zeros", zeros)
    monkeypatch.setattr(mm, "MAX_PINNED_MEMORY", 10**9)
    memory = CudaBackend().host_memory(2 << 20, pin=True)
    assert memory.numel() == 2 << 20
    assert queued == []
