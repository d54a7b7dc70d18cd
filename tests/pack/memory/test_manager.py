"""Our pipelines and stock models on one device that is too small for both, under ComfyUI's own memory manager."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.pack.applied import with_controls, with_loras
from tests.pack.fake_device import DEVICE, RESERVED, FakeDevice, stock_patcher
from tests.pack.pipelines import borrow, handle_for, sample_with
from tests.tiny_adapters import flux_controlnet, write_controlnets, write_peft
from tests.tiny_models import write_flux

pytestmark = pytest.mark.usefixtures("comfy_modules")
MODEL_BYTES = 1_700_000
"""A deep tiny FLUX: 0.3 MB of VAE, 0.2 of text encoders, and 0.7 of transformer, rounded up generously."""


@pytest.fixture(scope="module")
def deep_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX with four blocks of each kind."""
    folder = tmp_path_factory.mktemp("manager") / "deep-flux"
    return write_flux(folder, guidance_embeds=True, seed=9, blocks=4)


@pytest.fixture
def manager(comfy_modules: None) -> ModuleType:
    """ComfyUI's memory manager."""
    import comfy.model_management

    return comfy.model_management


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, manager: ModuleType) -> Iterator[FakeDevice]:
    """A device with room for everything, until a test makes it smaller."""
    from neurolux.loading.store import pipelines
    from neurolux.stages.prompts.embedding_cache import embedding_cache

    embedding_cache.clear()
    fake = FakeDevice(100 * MODEL_BYTES)
    fake.install(monkeypatch)
    yield fake
    manager.free_memory(1e30, DEVICE)
    pipelines.clear()
    assert manager.current_loaded_models == []


def residency(loaded: Any, name: str = "transformer") -> Any:
    """Where a component's weights are."""
    return loaded.placement._patchers[name].residency


def on_device(loaded: Any) -> int:
    """Bytes of a pipeline's weights on the device."""
    return sum(part.device_bytes for part in loaded.placement.memory())


def test_a_stock_model_takes_some_of_our_blocks_and_gets_them_back(
    device: FakeDevice, manager: ModuleType, deep_flux: Path
) -> None:
    handle = handle_for(deep_flux, precision="fp32", offload="none")
    loaded = borrow(handle)
    expected = sample_with(loaded, handle)
    transformer = residency(loaded)
    assert transformer.whole
    stock = stock_patcher()
    device.memory = device.memory - device.free + int(stock.model_size() * 1.1) - 150_000 + RESERVED
    manager.load_models_gpu([stock])
    assert stock.loaded_size() == stock.model_size()
    parts = {part.component: part for part in loaded.placement.memory()}
    assert parts["text_encoder"].device_bytes == 0  # the smallest goes first, and CLIP goes whole
    assert 0 < parts["text_encoder_2"].device_bytes < parts["text_encoder_2"].bytes
    assert device.free >= 0
    assert torch.equal(expected, sample_with(loaded, handle))
    manager.free_memory(1e30, DEVICE)
    device.memory = 100 * MODEL_BYTES
    assert torch.equal(expected, sample_with(loaded, handle))
    assert residency(loaded).whole


def test_ours_takes_the_room_of_a_stock_model(device: FakeDevice, manager: ModuleType, deep_flux: Path) -> None:
    stock = stock_patcher(layers=40)
    hidden = torch.rand(2, 64)
    expected = stock.model(hidden)
    manager.load_models_gpu([stock])
    device.memory = stock.model_size() + MODEL_BYTES // 2
    handle = handle_for(deep_flux, precision="fp32", offload="none")
    sample_with(borrow(handle), handle)
    assert stock.loaded_size() < stock.model_size()
    manager.load_models_gpu([stock])
    assert torch.equal(expected, stock.model(hidden))


def test_both_work_in_turn_and_images_stay_the_same(device: FakeDevice, manager: ModuleType, deep_flux: Path) -> None:
    handle = handle_for(deep_flux, precision="fp32")
    loaded = borrow(handle)
    expected = sample_with(loaded, handle)
    stock, hidden = stock_patcher(layers=40), torch.rand(2, 64)
    stock_expected = stock.model(hidden)
    device.memory = MODEL_BYTES // 2
    for seed in (7, 8, 7):
        image = sample_with(loaded, handle, seed=seed)
        assert torch.equal(expected, image) == (seed == 7)
        manager.load_models_gpu([stock])
        assert torch.equal(stock_expected, stock.model(hidden))
        assert device.free >= 0
    assert any(not patcher.placed or not patcher.residency.whole for patcher in loaded.placement._patchers.values())


@pytest.mark.parametrize("offload", ["none", "model", "stream", "sequential", "disk"])
def test_everything_leaves_when_it_is_asked_to(
    device: FakeDevice, manager: ModuleType, deep_flux: Path, offload: str
) -> None:
    handle = handle_for(deep_flux, precision="fp32", offload=offload)
    loaded = borrow(handle)
    expected = sample_with(loaded, handle)
    held = [weakref.ref(tensor) for tensor in storages(loaded)]
    manager.unload_all_models()
    gc.collect()
    assert on_device(loaded) == 0
    assert device.free == device.memory
    assert manager.current_loaded_models == []
    assert all(storage() is None for storage in held)
    assert torch.equal(expected, sample_with(borrow(handle), handle))


def storages(loaded: Any) -> list[Any]:
    """What holds the weights that have been copied to the device."""
    found = []
    for patcher in loaded.placement._patchers.values():
        masters = {slot.home.data_ptr() for unit in units_of(patcher) for slot in unit.slots}
        found += [
            weight.data.untyped_storage() for weight in patcher.model.parameters() if weight.data_ptr() not in masters
        ]
    return found


def units_of(patcher: Any) -> list[Any]:
    """A component's units, the rest among them."""
    return [patcher.residency.rest, *patcher.residency.units]


def test_a_device_too_small_for_the_chosen_mode_is_streamed_to(
    device: FakeDevice, manager: ModuleType, deep_flux: Path
) -> None:
    handle = handle_for(deep_flux, precision="fp32", offload="none")
    loaded = borrow(handle)
    expected = sample_with(loaded, handle)
    manager.unload_all_models()
    device.memory = 700_000
    assert torch.equal(expected, sample_with(loaded, handle))
    transformer = residency(loaded)
    assert transformer.streamed_bytes > 0


def test_two_models_that_both_fit_are_not_loaded_again(
    device: FakeDevice, deep_flux: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurolux.memory.streaming import Residency

    handles = [handle_for(folder, precision="fp32", offload="none") for folder in (deep_flux, tiny_models["tiny-sdxl"])]
    expected = [sample_with(borrow(handle), handle) for handle in handles]
    loaded = [borrow(handle) for handle in handles]
    brought: list[Any] = []
    monkeypatch.setattr(Residency, "_bring", lambda self, unit: brought.append(unit))
    for _ in range(2):
        for handle, before, image in zip(handles, loaded, expected, strict=True):
            assert borrow(handle) is before
            assert torch.equal(image, sample_with(before, handle))
    assert brought == []


def test_a_plan_for_a_small_device_keeps_to_it(device: FakeDevice, deep_flux: Path) -> None:
    device.memory = 700_000
    most: list[int] = []
    handle = handle_for(deep_flux, precision="fp32", offload="stream")
    loaded = borrow(handle)
    for block in loaded.pipe.transformer.transformer_blocks:
        block.register_forward_hook(lambda *_: most.append(on_device(loaded)))
    sample_with(loaded, handle)
    transformer = residency(loaded)
    assert 0 < transformer.resident_bytes < transformer.total_bytes
    assert max(most) <= device.memory
    assert loaded.placement.plan.offload == "stream"


def test_a_larger_image_leaves_fewer_blocks_on_the_device(
    device: FakeDevice, deep_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurolux.loading.replanning import fit
    from neurolux.planning import costs

    monkeypatch.setattr(costs, "sample_bytes", lambda family, width, height, *_, **__: RESERVED + width * height // 4)
    device.memory = 1_000_000
    handle = handle_for(deep_flux, precision="fp32", offload="stream")
    loaded = borrow(handle)
    kept = {}
    for side in (128, 512, 1024, 128):
        fit(loaded, side, side)
        loaded.placement.unload()
        loaded.placement.load()
        kept.setdefault(side, []).append(residency(loaded).resident_bytes)
    assert kept[128][0] == kept[128][1] > kept[512][0] >= kept[1024][0]


def test_a_controlnet_is_planned_for_before_the_run(device: FakeDevice, deep_flux: Path, tmp_path: Path) -> None:
    from neurolux.loading.replanning import fit

    device.memory = 1_200_000
    handle = handle_for(deep_flux, precision="fp32", offload="stream")
    guided = with_controls(handle, {"path": write_controlnets(tmp_path)["tiny-flux-canny"]})
    peaks = []
    for borrowed in (handle, guided, handle):
        loaded = borrow(borrowed)
        fit(loaded, 128, 128)
        peaks.append(loaded.placement.plan.peak_ram)
        assert loaded.placement.plan.peak_vram <= device.memory
    assert peaks[0] == peaks[2] < peaks[1]


def test_a_controlnet_larger_than_the_device_is_streamed_as_planned(
    device: FakeDevice, manager: ModuleType, deep_flux: Path, tmp_path: Path
) -> None:
    from neurolux.loading.replanning import fit
    from neurolux.memory.module_store import modules
    from neurolux.memory.placement import device_budget

    flux_controlnet(seed=21, blocks=6).save_pretrained(tmp_path / "deep")
    handle = handle_for(deep_flux, precision="fp32", offload="stream")
    guided = with_controls(handle, {"path": tmp_path / "deep"})
    expected = sample_with(borrow(guided), guided)
    manager.unload_all_models()
    modules.clear()
    device.memory = 1_300_000
    loaded = borrow(guided)
    fit(loaded, 128, 112)  # another image, so that it is planned anew
    assert torch.equal(expected, sample_with(loaded, guided))
    (net,) = (modules.get(key) for key in modules.keys("controlnet"))
    assert net is not None
    control, planned = net.patcher.residency, loaded.placement.planned("controlnet")
    assert device.memory < control.total_bytes
    assert (planned.placement, loaded.placement.plan.fits) == ("stream", True)
    assert planned.resident_blocks < planned.blocks == len(control.units)
    assert control.streamed_bytes > 0
    assert net.patcher.budget == device_budget(control, planned) < control.total_bytes


def test_auto_leaves_a_mode_that_a_controlnet_has_no_room_in(
    device: FakeDevice, deep_flux: Path, tmp_path: Path
) -> None:
    """And comes back to it when the ControlNet is gone; the weights are not loaded again."""
    from neurolux.loading.replanning import fit

    device.memory = 1_700_000
    handle = handle_for(deep_flux, precision="fp32")
    guided = with_controls(handle, {"path": write_controlnets(tmp_path)["tiny-flux-canny"]})
    modes, loads = [], []
    for borrowed in (handle, guided, handle):
        loaded = borrow(borrowed)
        fit(loaded, 128, 128)
        modes.append(loaded.placement.mode)
        loads.append(id(loaded))
        assert loaded.placement.plan.fits
        assert loaded.placement.plan.peak_vram <= device.memory
    assert modes[0] == modes[2] == "none" != modes[1]
    assert len(set(loads)) == 1


def test_loras_in_a_pipeline_are_planned_for(device: FakeDevice, deep_flux: Path, tmp_path: Path) -> None:
    from neurolux.loading.replanning import fit

    handle = handle_for(deep_flux, precision="fp32", offload="none")
    style = write_peft(tmp_path / "style.safetensors", deep_flux, seed=1)
    peaks = []
    for borrowed in (handle, with_loras(handle, (style, 1.0, 1.0))):
        loaded = borrow(borrowed)
        fit(loaded, 128, 128)
        peaks.append(loaded.placement.plan.peak_vram)
    (lora,) = loaded.loras.loaded.values()
    assert lora.bytes > 0
    assert peaks[1] - peaks[0] == pytest.approx(lora.bytes * 1.03, rel=0.02)


def test_what_the_manager_is_told_was_freed_has_been_freed(device: FakeDevice, deep_flux: Path) -> None:
    """Told too much, it would load a stock model into memory that is not there."""
    loaded = borrow(handle_for(deep_flux, precision="fp32", offload="none"))
    patcher = loaded.placement._patchers["transformer"]
    for asked in (1, patcher.loaded_size() // 3, 10 * patcher.loaded_size()):
        loaded.placement.load()
        before, free = patcher.loaded_size(), device.free
        told = patcher.partially_unload(torch.device("cpu"), asked)
        assert told == before - patcher.loaded_size() == device.free - free
        assert min(asked, 1) <= told <= before
    assert patcher.partially_load(DEVICE, 200_000) == patcher.loaded_size() - (before - told)


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("offload", ["stream", "disk"])
def test_an_interrupt_at_any_step_leaves_no_buffer(
    device: FakeDevice, manager: ModuleType, deep_flux: Path, offload: str, step: int
) -> None:
    device.memory = 700_000
    handle = handle_for(deep_flux, precision="fp32", offload=offload)
    loaded = borrow(handle)
    expected = sample_with(loaded, handle, steps=4)
    resident = on_device(loaded)
    calls: list[int] = []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) == step:
            manager.interrupt_current_processing()

    hook = loaded.pipe.transformer.register_forward_pre_hook(interrupt)
    with pytest.raises(manager.InterruptProcessingException):
        sample_with(loaded, handle, steps=4)
    hook.remove()
    assert len(calls) == step
    assert all(not patcher.residency._buffers for patcher in loaded.placement._patchers.values())
    assert on_device(loaded) <= max(resident, device.memory)
    assert torch.equal(expected, sample_with(loaded, handle, steps=4))
