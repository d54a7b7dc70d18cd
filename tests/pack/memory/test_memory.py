"""Memory: what ComfyUI's manager can do with our pipelines, and what is left behind after a fault.

These run the pack's code in this process, on ComfyUI's own modules: a server cannot be told to run out of memory.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.pack.pipelines import borrow, handle_for, sample_with

if TYPE_CHECKING:
    from neurolux.loading.store import PipelineStore

pytestmark = pytest.mark.usefixtures("comfy_modules")


@pytest.fixture
def pipelines(unloaded: None) -> PipelineStore:
    """The pack's store of pipelines, emptied afterwards."""
    from neurolux.loading.store import pipelines
    from neurolux.stages.prompts.embedding_cache import embedding_cache

    embedding_cache.clear()
    return pipelines


@pytest.fixture
def manager(comfy_modules: None) -> ModuleType:
    """ComfyUI's memory manager."""
    import comfy.model_management

    return comfy.model_management


def test_manager_knows_every_component(
    tiny_models: dict[str, Path], pipelines: PipelineStore, manager: ModuleType
) -> None:
    handle = handle_for(tiny_models["tiny-flux-dev"])
    loaded = borrow(handle)
    sample_with(loaded, handle)
    held = {type(entry.model.model).__name__ for entry in manager.current_loaded_models}
    assert held == {"AutoencoderKL", "CLIPTextModel", "T5EncoderModel", "FluxTransformer2DModel"}
    assert manager.current_loaded_models[0].model.loaded_size() > 0


def test_weights_are_not_inference_tensors(tiny_models: dict[str, Path], pipelines: PipelineStore) -> None:
    with torch.inference_mode():
        loaded = borrow(handle_for(tiny_models["tiny-sdxl"]))
    assert not any(weight.is_inference() for weight in loaded.denoiser.parameters())


def test_unloading_everything_frees_the_weights(
    tiny_models: dict[str, Path], pipelines: PipelineStore, manager: ModuleType
) -> None:
    handle = handle_for(tiny_models["tiny-flux-dev"])
    sample_with(borrow(handle), handle)
    transformer = weakref.ref(borrow(handle).denoiser)
    assert pipelines.loaded_models() == ["tiny-flux-dev"]
    manager.unload_all_models()
    assert pipelines.loaded_models() == []
    gc.collect()
    assert transformer() is None
    assert manager.current_loaded_models == []


def test_a_released_pipeline_is_loaded_again_when_it_is_needed(
    tiny_models: dict[str, Path], pipelines: PipelineStore, manager: ModuleType
) -> None:
    handle = handle_for(tiny_models["tiny-sdxl-lightning"])
    first = sample_with(borrow(handle), handle, steps=4)
    manager.unload_all_models()
    assert torch.equal(first, sample_with(borrow(handle), handle, steps=4))


def test_same_choices_share_one_load(tiny_models: dict[str, Path], pipelines: PipelineStore) -> None:
    first, second = handle_for(tiny_models["tiny-sdxl"]), handle_for(tiny_models["tiny-sdxl"], steps=9)
    assert borrow(first) is borrow(second)
    assert borrow(first) is not borrow(handle_for(tiny_models["tiny-sdxl"], precision="bf16"))


def test_the_least_recently_used_makes_room(
    tiny_models: dict[str, Path], pipelines: PipelineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles = {name: handle_for(tiny_models[name]) for name in ("tiny-sdxl", "tiny-flux-dev")}
    borrow(handles["tiny-sdxl"])
    full = [0, 0, 10**12]

    class Memory:
        """RAM that is full until one pipeline has gone."""

        total = 10**12

        @property
        def available(self) -> int:
            return full.pop(0) if len(full) > 1 else full[0]

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    handle_for(tiny_models["tiny-flux-schnell"])
    assert pipelines.loaded_models() == ["tiny-sdxl", "tiny-flux-schnell"]


def kept_prompts() -> Any:
    """The process's cache of encoded prompts."""
    from neurolux.stages.prompts.embedding_cache import embedding_cache

    return embedding_cache


def fail_once(times: int) -> tuple[Any, list[weakref.ref[torch.Tensor]]]:
    """A forward hook that runs out of memory so many times, and what it had allocated then."""
    leaked: list[weakref.ref[torch.Tensor]] = []

    def run_out(*_: object) -> None:
        if len(leaked) < times:
            activations = torch.ones(8)
            leaked.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return run_out, leaked


def part_at_work(loaded: Any, stage: str) -> torch.nn.Module:
    """The module that a stage runs last."""
    parts = {
        "encoding": loaded.pipe.text_encoder_2,
        "sampling": loaded.denoiser,
        "decoding": loaded.pipe.vae.decoder,
    }
    return parts[stage]


@pytest.mark.parametrize("stage", ["encoding", "sampling", "decoding"])
def test_a_stage_that_ran_out_of_memory_runs_again_with_a_leaner_plan(
    tiny_models: dict[str, Path], pipelines: PipelineStore, monkeypatch: pytest.MonkeyPatch, caplog: Any, stage: str
) -> None:
    from neurolux.planning.records import Machine

    machine = Machine("cuda", 80 * 10**9, 80 * 10**9, bf16=True, fp16=True)
    for planner in ("store", "replanning"):
        monkeypatch.setattr(f"neurolux.loading.{planner}.this_machine", lambda *_, **__: machine)
    handle = handle_for(tiny_models["tiny-flux-dev"], precision="fp32")
    loaded = borrow(handle)
    expected = sample_with(loaded, handle)
    kept_prompts().clear()
    assert loaded.placement.plan.offload == "none"
    run_out, leaked = fail_once(times=1)
    part_at_work(loaded, stage).register_forward_hook(run_out)
    assert torch.allclose(expected, sample_with(loaded, handle), atol=0 if stage != "decoding" else 0.05)
    assert loaded.placement.plan.offload != "none"
    assert leaked[0]() is None
    (warning,) = loaded.take_warnings()
    assert "memory ran out" in warning
    assert loaded.placement.plan.offload in warning
    assert loaded.take_warnings() == []
    assert "out of memory while" in caplog.text


@pytest.mark.parametrize("stage", ["encoding", "sampling", "decoding"])
def test_running_out_of_memory_again_says_what_to_do_and_leaves_nothing(
    tiny_models: dict[str, Path], pipelines: PipelineStore, manager: ModuleType, stage: str
) -> None:
    from neurolux.errors import OutOfMemory

    handle = handle_for(tiny_models["tiny-flux-dev"])
    loaded = borrow(handle)
    run_out, leaked = fail_once(times=100)
    part_at_work(loaded, stage).register_forward_hook(run_out)
    with pytest.raises(OutOfMemory, match=f"out of memory.* while {stage}.*2.00 GiB.*offload") as error:
        sample_with(loaded, handle)
    assert error.value.__context__ is None
    assert len(leaked) <= 2
    assert all(activations() is None for activations in leaked)
    assert manager.current_loaded_models == []


def test_a_text_is_encoded_once(tiny_models: dict[str, Path], pipelines: PipelineStore, manager: ModuleType) -> None:
    handle = handle_for(tiny_models["tiny-flux-dev"])
    loaded = borrow(handle)
    runs: list[str] = []

    def count(loaded: Any) -> None:
        for name in ("text_encoder", "text_encoder_2"):
            getattr(loaded.pipe, name).register_forward_pre_hook(lambda *_, name=name: runs.append(name))

    count(loaded)
    first = sample_with(loaded, handle, prompt="a cat")
    assert sorted(runs) == ["text_encoder", "text_encoder_2"]
    sample_with(loaded, handle, prompt="a cat", seed=8)
    sample_with(loaded, handle, prompt="a dog")
    assert len(runs) == 4
    manager.unload_all_models()
    again = borrow(handle)
    assert again is not loaded
    count(again)
    assert torch.equal(first, sample_with(again, handle, prompt="a cat"))
    assert len(runs) == 4
    kept_prompts().clear()
    assert torch.equal(first, sample_with(again, handle, prompt="a cat"))
    assert len(runs) == 6


def test_another_precision_encodes_for_itself(tiny_models: dict[str, Path], pipelines: PipelineStore) -> None:
    folder = tiny_models["tiny-flux-dev"]
    for precision in ("fp32", "bf16"):
        handle = handle_for(folder, precision=precision)
        sample_with(borrow(handle), handle)
    assert len(kept_prompts()) == 2


def test_replaced_files_encode_for_themselves(tiny_models: dict[str, Path], pipelines: PipelineStore) -> None:
    from neurolux.library.folder_models import folder_model
    from neurolux.loading.store import load_handle

    model = folder_model(tiny_models["tiny-flux-dev"])
    assert model is not None
    for stamp in ((1,), (2,)):
        handle = load_handle(model, stamp)
        sample_with(borrow(handle), handle)
    assert len(kept_prompts()) == 2


def test_encoded_prompts_are_bounded_by_bytes() -> None:
    from neurolux.stages.prompts.embedding_cache import EmbeddingCache

    cache = EmbeddingCache(largest=1000)
    for key in range(5):
        cache.put(key, [[torch.zeros(1, 100, dtype=torch.uint8), {"pooled_output": torch.zeros(200).byte()}]])
    cache.get(2)
    cache.put(5, [[torch.zeros(300).byte(), {"pooled_output": torch.zeros(0)}]])
    cache.put(6, [[torch.zeros(2000).byte(), {"pooled_output": torch.zeros(0)}]])
    assert [key for key in range(7) if cache.get(key) is not None] == [2, 4, 5]
    assert cache.bytes == 900
    cache.put(5, [[torch.zeros(100).byte(), {"pooled_output": torch.zeros(0)}]])
    assert cache.bytes == 700


def test_what_a_graph_changes_in_a_conditioning_is_not_kept() -> None:
    from neurolux.stages.prompts.embedding_cache import EmbeddingCache

    cache = EmbeddingCache()
    made = [[torch.zeros(4), {"pooled_output": torch.zeros(4)}]]
    cache.put("key", made)
    for conditioning in (made, cache.get("key")):
        assert conditioning is not None
        conditioning[0][1]["strength"] = 0.5
    assert [list(extra) for _, extra in cache.get("key") or []] == [["pooled_output"]]


def test_tiles_really_tile_and_are_those_of_diffusers(tiny_models: dict[str, Path], pipelines: PipelineStore) -> None:
    from neurolux.loading.replanning import fit
    from neurolux.stages.decode import decode

    loaded = borrow(handle_for(tiny_models["tiny-flux-dev"], precision="fp32"))
    seen: list[tuple[int, ...]] = []
    loaded.pipe.vae.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    latents = torch.nn.functional.interpolate(torch.randn(1, 4, 8, 8), size=(128, 128), mode="bicubic")
    fit(loaded, 1024, 1024)
    assert loaded.placement.plan.vae_tile is None  # it fits into RAM, so it is not cut up
    whole = decode(loaded, latents)
    assert seen == [(128, 128)]
    scale = loaded.pipe.vae_scale_factor
    loaded.placement.plan = replace(loaded.placement.plan, vae_tile=64 * scale)
    tiled = decode(loaded, latents)
    assert len(seen) > 4
    assert max(side for shape in seen[1:] for side in shape) == 64
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    vae = loaded.pipe.vae
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 64 * scale, 64
    with torch.no_grad():
        theirs = vae.decode(latents, return_dict=False)[0]
    vae.disable_tiling()
    assert torch.equal(tiled, (theirs / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1))
    loaded.placement.plan = replace(loaded.placement.plan, vae_tile=None)
    assert torch.equal(whole, decode(loaded, latents))


def test_what_is_loaded_is_measured(tiny_models: dict[str, Path], pipelines: PipelineStore) -> None:
    handle = handle_for(tiny_models["tiny-flux-dev"], precision="bf16", offload="model")
    sample_with(borrow(handle), handle)
    parts = {part.component: part for part in pipelines.memory()["tiny-flux-dev"]}
    loaded = borrow(handle)
    for name, part in parts.items():
        weights = [*getattr(loaded.pipe, name).parameters(), *getattr(loaded.pipe, name).buffers()]
        assert part.bytes == sum({id(weight): weight.nbytes for weight in weights}.values())
        assert part.storage == "bf16"
        assert part.device_bytes == (part.bytes if name == "vae" else 0)


def test_other_errors_pass_through(pipelines: PipelineStore) -> None:
    from neurolux.memory.out_of_memory import with_memory_errors

    def fail() -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        with_memory_errors("testing", "none", fail)


def test_cpu_allocator_errors_count_as_out_of_memory(pipelines: PipelineStore) -> None:
    from neurolux.errors import OutOfMemory
    from neurolux.memory.out_of_memory import with_memory_errors

    with pytest.raises(OutOfMemory, match="out of memory while testing"):
        with_memory_errors("testing", "Use less.", lambda: torch.empty(10**15))


def test_interrupt_leaves_no_hooks_and_no_lock(
    tiny_models: dict[str, Path], pipelines: PipelineStore, manager: ModuleType
) -> None:
    handle = handle_for(tiny_models["tiny-sdxl"])
    loaded = borrow(handle)
    expected = sample_with(loaded, handle)
    manager.interrupt_current_processing()
    with pytest.raises(manager.InterruptProcessingException):
        sample_with(loaded, handle)
    assert torch.equal(expected, sample_with(loaded, handle))


def test_preview_is_the_clean_image_of_a_straight_line() -> None:
    from neurolux.stages.preview import predicted_clean

    clean, noise = torch.rand(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    flow = [(1 - sigma) * clean + sigma * noise for sigma in (0.9, 0.6)]
    euler = [clean + sigma * noise for sigma in (14.0, 3.0)]
    assert torch.allclose(predicted_clean(flow[0], flow[1], 0.9, 0.6), clean, atol=1e-5)
    assert torch.allclose(predicted_clean(euler[0], euler[1], 14.0, 3.0), clean, atol=1e-5)
    assert predicted_clean(clean, noise, 0.5, 0.5) is noise
