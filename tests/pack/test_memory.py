"""Memory: what ComfyUI's manager can do with our pipelines, and what is left behind after a fault.

These run the pack's code in this process, on ComfyUI's own modules: a server cannot be told to run out of memory.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from neurolux.pipelines.registry import LoadedPipeline, PipelineHandle

pytestmark = pytest.mark.usefixtures("comfy_modules")
LATENT = {"samples": torch.zeros(1, 4, 16, 16)}


@pytest.fixture
def pipelines(comfy_modules: None) -> Iterator[ModuleType]:
    """The pack's registry module, emptied afterwards."""
    from neurolux.pipelines import registry

    yield registry
    for spec in list(registry.registry._loaded):
        registry.registry._drop(spec)


@pytest.fixture
def manager(comfy_modules: None) -> ModuleType:
    """ComfyUI's memory manager."""
    import comfy.model_management

    return comfy.model_management


def handle_for(folder: Path, **choices: Any) -> PipelineHandle:
    """A loaded tiny model."""
    from neurolux.folder_models import folder_model
    from neurolux.pipelines.registry import load_handle

    model = folder_model(folder)
    assert model is not None
    return load_handle(model, (), **choices)


def sample_with(loaded: LoadedPipeline, handle: PipelineHandle, steps: int = 2) -> torch.Tensor:
    """One picture, decoded."""
    from neurolux.pipelines.decode import decode
    from neurolux.pipelines.encode import encode
    from neurolux.pipelines.sample import sample

    with torch.inference_mode():  # as ComfyUI runs nodes
        positive = encode(loaded, "a cat")
        return decode(loaded, sample(loaded, handle.spec, positive, None, LATENT, seed=7, steps=steps))


def test_manager_knows_every_component(
    tiny_models: dict[str, Path], pipelines: ModuleType, manager: ModuleType
) -> None:
    handle = handle_for(tiny_models["tiny-flux-dev"])
    loaded = handle.loaded()
    sample_with(loaded, handle)
    held = {type(entry.model.model).__name__ for entry in manager.current_loaded_models}
    assert held == {"AutoencoderKL", "CLIPTextModel", "T5EncoderModel", "FluxTransformer2DModel"}
    assert manager.current_loaded_models[0].model.loaded_size() > 0


def test_weights_are_not_inference_tensors(tiny_models: dict[str, Path], pipelines: ModuleType) -> None:
    with torch.inference_mode():
        loaded = handle_for(tiny_models["tiny-sdxl"]).loaded()
    assert not any(weight.is_inference() for weight in loaded.denoiser.parameters())


def test_unloading_everything_frees_the_weights(
    tiny_models: dict[str, Path], pipelines: ModuleType, manager: ModuleType
) -> None:
    handle = handle_for(tiny_models["tiny-flux-dev"])
    sample_with(handle.loaded(), handle)
    transformer = weakref.ref(handle.loaded().denoiser)
    assert pipelines.registry.loaded_models() == ["tiny-flux-dev"]
    manager.unload_all_models()
    assert pipelines.registry.loaded_models() == []
    gc.collect()
    assert transformer() is None
    assert manager.current_loaded_models == []


def test_a_released_pipeline_is_loaded_again_when_it_is_needed(
    tiny_models: dict[str, Path], pipelines: ModuleType, manager: ModuleType
) -> None:
    handle = handle_for(tiny_models["tiny-sdxl-lightning"])
    first = sample_with(handle.loaded(), handle, steps=4)
    manager.unload_all_models()
    assert torch.equal(first, sample_with(handle.loaded(), handle, steps=4))


def test_same_choices_share_one_load(tiny_models: dict[str, Path], pipelines: ModuleType) -> None:
    first, second = handle_for(tiny_models["tiny-sdxl"]), handle_for(tiny_models["tiny-sdxl"], steps=9)
    assert first.loaded() is second.loaded()
    assert first.loaded() is not handle_for(tiny_models["tiny-sdxl"], precision="bf16").loaded()


def test_the_least_recently_used_makes_room(
    tiny_models: dict[str, Path], pipelines: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles = {name: handle_for(tiny_models[name]) for name in ("tiny-sdxl", "tiny-flux-dev")}
    handles["tiny-sdxl"].loaded()
    full = [0, 0, 10**12]

    class Memory:
        """RAM that is full until one pipeline has gone."""

        @property
        def available(self) -> int:
            return full.pop(0) if len(full) > 1 else full[0]

    monkeypatch.setattr(pipelines.psutil, "virtual_memory", Memory)
    handle_for(tiny_models["tiny-flux-schnell"])
    assert pipelines.registry.loaded_models() == ["tiny-sdxl", "tiny-flux-schnell"]


@pytest.mark.parametrize("mode", ["model", "sequential"])
@pytest.mark.parametrize("name", ["tiny-flux-dev", "tiny-sdxl"])
def test_offload_does_not_change_the_picture(
    tiny_models: dict[str, Path], pipelines: ModuleType, name: str, mode: str
) -> None:
    from neurolux.pipelines.placement import Placement

    handle = handle_for(tiny_models[name])
    loaded = handle.loaded()
    expected = sample_with(loaded, handle)
    components = {key: part for key, part in loaded.pipe.components.items() if isinstance(part, torch.nn.Module)}
    loaded.placement.unload()
    loaded.placement = Placement(components, torch.device("cpu"), mode)  # pyright: ignore[reportArgumentType]
    assert torch.equal(expected, sample_with(loaded, handle))
    on_meta = {weight.device.type for weight in loaded.denoiser.parameters()}
    assert on_meta == ({"meta"} if mode == "sequential" else {"cpu"})
    loaded.placement.close()
    assert {weight.device.type for weight in loaded.denoiser.parameters()} == {"cpu"}


def test_the_copy_in_ram_is_put_back(tiny_models: dict[str, Path], pipelines: ModuleType) -> None:
    """On CUDA weights are copied over and the copy in RAM is kept; here both copies are in RAM."""
    from neurolux.pipelines.patcher import ComponentPatcher

    cpu = torch.device("cpu")
    encoder = handle_for(tiny_models["tiny-flux-dev"]).loaded().pipe.text_encoder_2  # T5 ties two of its weights
    before = {name: weight.data_ptr() for name, weight in encoder.named_parameters()}
    patcher = ComponentPatcher(encoder, cpu, cpu)
    patcher._load_copy(cpu)
    assert all(weight.data_ptr() != before[name] for name, weight in encoder.named_parameters())
    patcher.placed = True
    patcher.detach(unpatch_all=False)
    assert patcher.placed
    patcher.detach()
    assert before == {name: weight.data_ptr() for name, weight in encoder.named_parameters()}
    assert patcher.released


@pytest.mark.parametrize("stage", ["encoding", "sampling", "decoding"])
def test_running_out_of_memory_says_what_to_do_and_leaves_nothing(
    tiny_models: dict[str, Path],
    pipelines: ModuleType,
    manager: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    from neurolux.errors import OutOfMemory

    handle = handle_for(tiny_models["tiny-flux-dev"])
    loaded = handle.loaded()
    failing: Any = {
        "encoding": loaded.pipe.text_encoder_2,
        "sampling": loaded.denoiser,
        "decoding": loaded.pipe.vae.decoder,
    }[stage]
    leaked: list[weakref.ref[torch.Tensor]] = []

    def run_out(*_: object, **__: object) -> None:
        activations = torch.ones(8)
        leaked.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(failing, "forward", run_out)
    with pytest.raises(OutOfMemory, match=f"out of memory while {stage}.*2.00 GiB.*offload") as error:
        sample_with(loaded, handle)
    assert error.value.__context__ is None
    assert leaked[0]() is None
    assert manager.current_loaded_models == []


def test_other_errors_pass_through(pipelines: ModuleType) -> None:
    from neurolux.pipelines.memory import with_memory_errors

    def fail() -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        with_memory_errors("testing", "none", fail)


def test_cpu_allocator_errors_count_as_out_of_memory(pipelines: ModuleType) -> None:
    from neurolux.errors import OutOfMemory
    from neurolux.pipelines.memory import with_memory_errors

    with pytest.raises(OutOfMemory, match="out of memory while testing"):
        with_memory_errors("testing", "Use less.", lambda: torch.empty(10**15))


def test_interrupt_leaves_no_hooks_and_no_lock(
    tiny_models: dict[str, Path], pipelines: ModuleType, manager: ModuleType
) -> None:
    handle = handle_for(tiny_models["tiny-sdxl"])
    loaded = handle.loaded()
    expected = sample_with(loaded, handle)
    manager.interrupt_current_processing()
    with pytest.raises(manager.InterruptProcessingException):
        sample_with(loaded, handle)
    assert torch.equal(expected, sample_with(loaded, handle))


def test_preview_is_the_clean_picture_of_a_straight_line() -> None:
    from neurolux.pipelines.preview import predicted_clean

    clean, noise = torch.rand(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    flow = [(1 - sigma) * clean + sigma * noise for sigma in (0.9, 0.6)]
    euler = [clean + sigma * noise for sigma in (14.0, 3.0)]
    assert torch.allclose(predicted_clean(flow[0], flow[1], 0.9, 0.6), clean, atol=1e-5)
    assert torch.allclose(predicted_clean(euler[0], euler[1], 14.0, 3.0), clean, atol=1e-5)
    assert predicted_clean(clean, noise, 0.5, 0.5) is noise
