"""torch.compile: compiled blocks really run, make the same image, and leave no trace where nobody asks for them.

Most of these use a compiler of their own that runs what torch captured and counts: it is the same as the real one up to
the code that is written, and takes no minute. One uses the real one.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.pack.pipelines import borrow, budget_for, handle_for, sample_with
from tests.tiny_models import write_flux

if TYPE_CHECKING:
    from neurolux.loading.store import PipelineStore

pytestmark = pytest.mark.usefixtures("comfy_modules")
STEPS = 2
QUICK = {"compile_threads": 1, "cpp_cache_precompile_headers": False, "cpp.vec_isa_ok": True}
"""For one block: no processes of inductor's own, no precompiled headers, no test compilations."""


class CountingCompiler:
    """Runs each captured block as it is, and counts."""

    def __init__(self) -> None:
        self.blocks = 0
        """Kinds of blocks that were compiled."""
        self.calls = 0
        self.failure: Exception | None = None

    def __call__(self, graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        if self.failure is not None:
            raise self.failure
        self.blocks += 1

        def call(*tensors: torch.Tensor) -> Any:
            self.calls += 1
            return graph.forward(*tensors)

        return call


@pytest.fixture
def pipelines(comfy_modules: None) -> Iterator[PipelineStore]:
    """The pack's store of pipelines, emptied afterwards; nothing is compiled yet."""
    from neurolux.loading.store import pipelines

    torch._dynamo.reset()
    yield pipelines
    pipelines.clear()
    torch._dynamo.reset()


@pytest.fixture
def compiler(pipelines: PipelineStore, monkeypatch: pytest.MonkeyPatch) -> CountingCompiler:
    """What compiles instead of inductor."""
    from neurolux.loading import compiled

    counting = CountingCompiler()
    monkeypatch.setattr(compiled, "BACKEND", counting)
    return counting


def repeated_blocks(denoiser: Any) -> list[torch.nn.Module]:
    """The blocks that diffusers compiles."""
    return [part for part in denoiser.modules() if type(part).__name__ in denoiser._repeated_blocks]


@pytest.mark.parametrize("name", ["tiny-flux-dev", "tiny-sdxl"])
@pytest.mark.parametrize("precision", ["fp32", "int8", "nf4"])
def test_compiled_blocks_make_the_same_image_of_the_same_weights(
    tiny_models: dict[str, Path], compiler: CountingCompiler, name: str, precision: str
) -> None:
    plain = handle_for(tiny_models[name], precision=precision)
    compiled = handle_for(tiny_models[name], precision=precision, compile=True)
    assert borrow(plain) is borrow(compiled)
    expected = sample_with(borrow(plain), plain, STEPS)
    assert compiler.calls == 0
    assert torch.equal(expected, sample_with(borrow(compiled), compiled, STEPS))
    blocks = repeated_blocks(borrow(compiled).denoiser)
    assert compiler.calls == STEPS * len(blocks)
    assert compiler.blocks == len({type(block) for block in blocks})
    assert borrow(compiled).take_warnings() == []
    sample_with(borrow(compiled), compiled, STEPS, seed=8)
    assert compiler.blocks == len({type(block) for block in blocks})  # not again for another image
    calls = compiler.calls
    assert torch.equal(expected, sample_with(borrow(plain), plain, STEPS))
    assert compiler.calls == calls


def test_the_real_compiler_rounds_differently_and_no_more(
    tiny_models: dict[str, Path], pipelines: PipelineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import compile_fx

    graphs: list[object] = []
    compile_graph = compile_fx.compile_fx

    def noted(graph: Any, *arguments: Any, **options: Any) -> Any:
        graphs.append(graph)
        return compile_graph(graph, *arguments, **options)

    monkeypatch.setattr(compile_fx, "compile_fx", noted)
    for option, value in QUICK.items():
        monkeypatch.setattr(f"torch._inductor.config.{option}", value)
    plain = handle_for(tiny_models["tiny-sdxl"])
    expected = sample_with(borrow(plain), plain, STEPS)
    compiled = handle_for(tiny_models["tiny-sdxl"], compile=True)
    found = sample_with(borrow(compiled), compiled, STEPS)
    assert torch.allclose(expected, found, atol=1e-4)
    assert len(graphs) == 1
    assert borrow(compiled).take_warnings() == []


@pytest.mark.parametrize("offload", ["stream", "sequential", "disk"])
def test_streamed_weights_are_not_compiled_and_that_is_said(
    tmp_path: Path, compiler: CountingCompiler, monkeypatch: pytest.MonkeyPatch, offload: str
) -> None:
    from neurolux.memory import placement

    monkeypatch.setattr(placement, "device_budget", budget_for(1 / 3))
    folder = write_flux(tmp_path / "deep-flux", guidance_embeds=True, seed=5, blocks=3)
    handle = handle_for(folder, offload=offload)
    expected = sample_with(borrow(handle), handle, STEPS)
    compiled = handle_for(folder, offload=offload, compile=True)
    loaded = borrow(compiled)
    assert torch.equal(expected, sample_with(loaded, compiled, STEPS))
    assert compiler.calls == 0
    (warning,) = loaded.take_warnings()
    assert "compile has no effect on deep-flux: its transformer is streamed" in warning
    assert f"offload {offload}" in warning


def test_a_block_that_the_manager_takes_ends_compiling_until_it_is_back(
    tiny_models: dict[str, Path], compiler: CountingCompiler
) -> None:
    handle = handle_for(tiny_models["tiny-flux-dev"], compile=True)
    loaded = borrow(handle)
    expected = sample_with(loaded, handle, STEPS)
    calls = compiler.calls
    patcher = loaded.placement._patchers["transformer"]
    whole, patcher.budget = patcher.budget, patcher.residency.total_bytes * 0.7
    patcher.partially_unload(patcher.offload_device, patcher.residency.total_bytes * 0.5)
    assert torch.equal(expected, sample_with(loaded, handle, STEPS))
    assert compiler.calls == calls
    assert "streamed" in loaded.take_warnings()[0]
    patcher.budget = whole
    loaded.placement.unload()
    assert torch.equal(expected, sample_with(loaded, handle, STEPS))
    assert compiler.calls == 2 * calls


def test_without_a_compiler_the_image_is_made_and_the_remedy_said(
    tiny_models: dict[str, Path], compiler: CountingCompiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    handle = handle_for(tiny_models["tiny-sdxl"], compile=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sample_with(borrow(handle), handle, STEPS).isfinite().all()
    assert compiler.calls == 0
    (warning,) = borrow(handle).take_warnings()
    assert "needs a C++ compiler and finds none. Install one (g++)" in warning


def test_on_a_gpu_triton_and_a_c_compiler_are_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from neurolux.loading import compiled

    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    assert "needs the package triton" in (compiled.missing_compiler(torch.device("cuda")) or "")
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: object())
    assert compiled.missing_compiler(torch.device("cuda")) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Install one (gcc)" in (compiled.missing_compiler(torch.device("cuda")) or "")


def test_a_compiler_that_fails_is_said_and_tried_once(
    tiny_models: dict[str, Path], compiler: CountingCompiler, caplog: Any
) -> None:
    handle = handle_for(tiny_models["tiny-sdxl"], compile=True)
    loaded = borrow(handle)
    compiler.failure = RuntimeError("Python.h: No such file or directory")
    assert sample_with(loaded, handle, STEPS).isfinite().all()
    (warning,) = loaded.take_warnings()
    assert "it failed" in warning
    assert "Python.h: No such file or directory" in warning
    assert "compiling tiny-sdxl failed" in caplog.text
    compiler.failure = None
    sample_with(loaded, handle, STEPS)
    assert compiler.calls == 0
    assert len(loaded.take_warnings()) == 1


def test_compiled_blocks_do_not_keep_a_dropped_model(
    tiny_models: dict[str, Path], pipelines: PipelineStore, compiler: CountingCompiler
) -> None:
    handle = handle_for(tiny_models["tiny-flux-dev"], compile=True)
    sample_with(borrow(handle), handle, STEPS)
    weight = weakref.ref(borrow(handle).denoiser.x_embedder.weight)
    block = weakref.ref(borrow(handle).denoiser.transformer_blocks[0])
    pipelines.drop(handle.spec)
    gc.collect()
    assert weight() is None
    assert block() is None


def test_an_interrupt_leaves_plain_blocks(
    tiny_models: dict[str, Path], compiler: CountingCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as mm

    handle = handle_for(tiny_models["tiny-sdxl"], compile=True)
    loaded = borrow(handle)
    sample_with(loaded, handle, STEPS)
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        sample_with(loaded, handle, STEPS)
    assert not any(block._compiled_call_impl for block in repeated_blocks(loaded.denoiser))
