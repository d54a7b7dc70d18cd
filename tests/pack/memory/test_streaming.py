"""Weights that come ahead of use: the same numbers, brought in time, and nothing left behind.

``cpu:0`` stands in for a GPU: unlike plain ``cpu`` it is another device than RAM for this code, so that everything that
works on it must have been copied there.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

if TYPE_CHECKING:
    from neurolux.memory.streaming import Residency

from tests.pack.blocks import lists_of

pytestmark = pytest.mark.usefixtures("comfy_modules")
DEVICE = torch.device("cpu:0")
BLOCKS, WIDTH = 6, 64


class Block(torch.nn.Module):
    """A parameter, a buffer, and a layer inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)
        self.gain = torch.nn.Parameter(torch.rand(width))
        self.register_buffer("shift", torch.rand(width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(hidden) * self.gain + self.shift)


class Denoiser(torch.nn.Module):
    """Blocks in the order that ``order`` says, between two layers."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.order = order
        self.first = torch.nn.Linear(4, WIDTH)
        self.transformer_blocks = torch.nn.ModuleList(Block(WIDTH) for _ in range(BLOCKS))
        self.last = torch.nn.Linear(WIDTH, 4)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.first(hidden)
        for index in self.order:
            hidden = self.transformer_blocks[index](hidden)
        return self.last(hidden)

    def linear(self, block: int) -> torch.nn.Linear:
        """The layer inside a block."""
        return cast(Block, self.transformer_blocks[block]).linear


@pytest.fixture(params=["in order", "in another order"])
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    """Blocks that run as they are listed, and others."""
    torch.manual_seed(0)
    order = list(range(BLOCKS)) if request.param == "in order" else [3, 0, 5, 1, 4, 2]
    return Denoiser(order).requires_grad_(False).eval()


@pytest.fixture
def temp_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """ComfyUI's folder for temporary files."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    return tmp_path


def residency_of(module: torch.nn.Module, **options: Any) -> Residency:
    """``module`` split into blocks, for the stand-in device."""
    from neurolux.memory.mapped_weights import map_to_files
    from neurolux.memory.streaming import Residency
    from neurolux.memory.units import split_into_blocks, split_into_layers

    by_layer = options.pop("by_layer", False)
    rest, units = split_into_layers(module) if by_layer else split_into_blocks(module, lists_of(module))
    if options.get("mapped"):
        map_to_files([rest, *units])
    return Residency(rest, units, DEVICE, ordered=not by_layer, **options)


def budget(residency: Residency, resident: int) -> int:
    """Bytes for so many blocks, and two on their way."""
    return residency.rest.nbytes + resident * residency.units[0].nbytes + 2 * residency.units[0].buffer_bytes


def watch_addresses(module: torch.nn.Module) -> Iterator[set[int]]:
    """The addresses that the layers of ``module`` really compute with, as they run."""
    used: set[int] = set()

    def note(layer: torch.nn.Module, *_: object) -> None:
        used.update(tensor.data_ptr() for tensor in [*layer.parameters(False), *layer.buffers(False)])

    for layer in module.modules():
        layer.register_forward_pre_hook(note)
    yield used


@pytest.mark.parametrize("mapped", [False, True], ids=["from RAM", "from files"])
@pytest.mark.parametrize("resident", [0, 1, 3, BLOCKS])
def test_every_weight_is_brought_to_the_device(
    denoiser: Denoiser, temp_folder: Path, resident: int, mapped: bool
) -> None:
    inputs = torch.rand(2, 4)
    expected = denoiser(inputs)
    residency = residency_of(denoiser, mapped=mapped)
    residency.place(budget(residency, resident) if resident < BLOCKS else float("inf"))
    used = next(watch_addresses(denoiser))
    for _ in range(3):
        assert torch.equal(expected, denoiser(inputs))
    masters = {slot.home.data_ptr() for unit in [residency.rest, *residency.units] for slot in unit.slots}
    assert used
    assert not used & masters
    assert residency.resident_bytes == resident * residency.units[0].nbytes
    residency.close()
    assert torch.equal(expected, denoiser(inputs))
    assert {tensor.data_ptr() for tensor in [*denoiser.parameters(), *denoiser.buffers()]} == masters


def test_layer_by_layer(denoiser: Denoiser) -> None:
    inputs = torch.rand(2, 4)
    expected = denoiser(inputs)
    residency = residency_of(denoiser, by_layer=True)
    residency.place(0)
    used = next(watch_addresses(denoiser.linear(0)))
    assert all(torch.equal(expected, denoiser(inputs)) for _ in range(3))
    assert used
    assert residency.device_bytes < residency.total_bytes
    assert residency.device_bytes - residency.rest.nbytes == 2 * max(unit.buffer_bytes for unit in residency.units)


def test_the_order_is_learned_in_one_pass(denoiser: Denoiser) -> None:
    residency = residency_of(denoiser)
    residency.place(0)
    denoiser(torch.rand(2, 4))
    before = residency.streamed_bytes
    denoiser(torch.rand(2, 4))
    assert residency.streamed_bytes - before == sum(unit.nbytes for unit in residency.units)


def test_only_streamed_masters_are_moved_together(denoiser: Denoiser) -> None:
    """One piece of RAM for each streamed block; a resident one needs none."""
    residency = residency_of(denoiser)
    residency.place(budget(residency, 2))
    denoiser(torch.rand(2, 4))
    assert sum(unit.flat is not None for unit in residency.units) == BLOCKS - 2
    assert all(unit.flat is None or unit.flat.data_ptr() % 4096 == 0 for unit in residency.units)


@pytest.mark.parametrize("at", range(BLOCKS))
@pytest.mark.parametrize("mapped", [False, True], ids=["from RAM", "from files"])
def test_a_fault_in_any_block_leaves_nothing_on_the_device(
    denoiser: Denoiser, temp_folder: Path, at: int, mapped: bool
) -> None:
    inputs = torch.rand(2, 4)
    expected = denoiser(inputs)
    residency = residency_of(denoiser, mapped=mapped)
    residency.place(budget(residency, 2))
    denoiser(inputs)
    held = [weakref.ref(buffer.memory) for buffer in residency._buffers]
    fault = denoiser.linear(at).register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        denoiser(inputs)
    fault.remove()
    residency.drop_buffers()
    assert residency.device_bytes == residency.rest.nbytes + 2 * residency.units[0].nbytes
    residency.leave()
    gc.collect()
    assert residency.device_bytes == 0
    assert [memory() for memory in held] == [None, None]
    residency.place(budget(residency, 1))
    assert torch.equal(expected, denoiser(inputs))


def test_a_device_that_is_full_gets_everything_back(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    from neurolux.memory.streaming import Residency

    residency = residency_of(denoiser)
    bring, brought = Residency._bring, []

    def run_out(self: Residency, unit: Any) -> None:
        if len(brought) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        bring(self, unit)
        brought.append(unit)

    monkeypatch.setattr(Residency, "_bring", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        residency.place(float("inf"))
    assert residency.device_bytes == 0
    assert not residency.placed
    assert all(
        tensor.data_ptr() == slot.home.data_ptr()
        for unit in residency.units
        for slot in unit.slots
        if (tensor := slot.holder[slot.name]) is not None
    )


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_blocks_are_given_back_and_taken_again(denoiser: Denoiser, blocks: int) -> None:
    inputs = torch.rand(2, 4)
    expected = denoiser(inputs)
    residency = residency_of(denoiser)
    residency.place(float("inf"))
    size = residency.units[0].nbytes
    freed = residency.release(blocks * size - 1)
    assert freed == blocks * size
    assert residency.device_bytes == residency.total_bytes - freed
    assert torch.equal(expected, denoiser(inputs))
    residency.drop_buffers()
    kept = set(residency._resident)
    residency.place(budget(residency, BLOCKS - blocks))
    assert kept <= residency._resident
    residency.place(float("inf"))
    assert residency.whole
    assert not residency._hooks


def test_weights_are_never_copied_back(denoiser: Denoiser) -> None:
    """Nothing writes to a master, and none is replaced, however often weights come and go."""
    residency = residency_of(denoiser)
    inputs = torch.rand(2, 4)

    def masters() -> list[tuple[int, int]]:
        slots = [slot for unit in (residency.rest, *residency.units) for slot in unit.slots]
        return [(slot.home.data_ptr(), slot.home._version) for slot in slots]

    residency.place(budget(residency, 2))
    denoiser(inputs)  # those that are streamed are put together once
    before = masters()
    for _ in range(2):
        denoiser(inputs)
        residency.release(residency.resident_bytes // 2)
        denoiser(inputs)
        residency.leave()
        residency.place(budget(residency, 2))
    residency.leave()
    moved = [at for at, now in zip(before, masters(), strict=True) if at != now]
    assert moved == []


def test_more_than_there_is_cannot_be_given_back(denoiser: Denoiser) -> None:
    residency = residency_of(denoiser)
    residency.place(float("inf"))
    assert residency.release(10**9) == sum(unit.nbytes for unit in residency.units)
    assert residency.device_bytes == residency.rest.nbytes


def test_a_shared_weight_is_moved_once_and_stays(denoiser: Denoiser) -> None:
    denoiser.linear(2).weight = denoiser.linear(4).weight
    inputs = torch.rand(2, 4)
    expected = denoiser(inputs)
    residency = residency_of(denoiser)
    total = {id(tensor): tensor.nbytes for tensor in [*denoiser.parameters(), *denoiser.buffers()]}
    assert residency.total_bytes == sum(total.values())
    assert any(slot.name == "weight" and slot.nbytes == WIDTH * WIDTH * 4 for slot in residency.rest.slots)
    residency.place(0)
    assert torch.equal(expected, denoiser(inputs))


@pytest.mark.parametrize("storage", ["fp8", "int8", "nf4"])
@pytest.mark.parametrize("mapped", [False, True], ids=["from RAM", "from files"])
def test_weights_in_few_bits_are_streamed(temp_folder: Path, storage: Any, mapped: bool) -> None:
    from neurolux.weights.quantized.storage import store_weight

    torch.manual_seed(0)
    denoiser = Denoiser(list(range(BLOCKS))).requires_grad_(False)
    for layer in [denoiser.linear(block) for block in range(BLOCKS)]:
        store_weight(layer, layer.weight.data, storage, torch.float32)
    inputs = torch.rand(2, 4)
    expected = denoiser(inputs)
    residency = residency_of(denoiser, mapped=mapped)
    residency.place(budget(residency, 2))
    used = next(watch_addresses(denoiser))
    assert all(torch.equal(expected, denoiser(inputs)) for _ in range(2))
    masters = {slot.home.data_ptr() for unit in residency.units for slot in unit.slots}
    assert not used & masters


def test_weights_without_a_file_get_one_that_has_no_name(denoiser: Denoiser, temp_folder: Path) -> None:
    from neurolux.memory.backends.files import FileMappings

    before = torch.cat([weight.flatten().clone() for weight in denoiser.parameters()])
    residency = residency_of(denoiser, mapped=True)
    slots = [slot for unit in [residency.rest, *residency.units] for slot in unit.slots]
    mapped = FileMappings()
    assert all(slot.home in mapped for slot in slots)
    assert list(temp_folder.iterdir()) == []
    assert torch.equal(before, torch.cat([weight.flatten() for weight in denoiser.parameters()]))


def test_a_disk_that_is_full_is_said_beforehand(
    denoiser: Denoiser, temp_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurolux.errors import WeightsMissing
    from neurolux.memory.backends import files

    class Usage:
        """A full disk."""

        free = 10_000

    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(WeightsMissing, match="free some space, or choose the precision"):
        residency_of(denoiser, mapped=True)
    assert list(temp_folder.iterdir()) == []


def test_safetensors_files_are_used_where_they_are(tiny_models: dict[str, Path], temp_folder: Path) -> None:
    from diffusers import UNet2DConditionModel
    from neurolux.memory.backends.files import FileMappings
    from neurolux.memory.units import split_into_blocks

    unet = UNet2DConditionModel.from_pretrained(tiny_models["tiny-sdxl"] / "unet")
    rest, units = split_into_blocks(unet, lists_of(unet))
    mapped = FileMappings()
    assert all(slot.home in mapped for unit in [rest, *units] for slot in unit.slots)


def test_a_unet_is_streamed_in_small_parts_in_their_order(tiny_models: dict[str, Path]) -> None:
    from diffusers import UNet2DConditionModel
    from neurolux.memory.units import split_into_blocks

    unet = UNet2DConditionModel.from_pretrained(tiny_models["tiny-sdxl"] / "unet")
    rest, units = split_into_blocks(unet, lists_of(unet))
    ran: list[str] = []
    for unit in units:
        assert unit.module is not None
        unit.module.register_forward_pre_hook(lambda *_, name=unit.name: ran.append(name))
    conditions = {"text_embeds": torch.zeros(1, 32), "time_ids": torch.zeros(1, 6)}
    unet(torch.zeros(1, 4, 16, 16), 1, torch.zeros(1, 5, 64), added_cond_kwargs=conditions)
    assert ran == [unit.name for unit in units]
    assert sum(unit.nbytes for unit in units) > 0.9 * (rest.nbytes + sum(unit.nbytes for unit in units))


def test_blocks_are_the_ones_that_plans_count(tiny_models: dict[str, Path]) -> None:
    from neurolux.library.folder_models import folder_model
    from neurolux.loading.components import shapes_of
    from neurolux.weights.download.sources import resolve

    from tests.pack.pipelines import borrow, handle_for

    for name in ("tiny-flux-dev", "tiny-sdxl"):
        model = folder_model(tiny_models[name])
        assert model is not None
        shapes = shapes_of(model, None, resolve(model, None))
        placement = borrow(handle_for(tiny_models[name], precision="fp32")).placement
        for component, shape in shapes.items():
            units = placement._patchers[component].residency.units
            assert sorted(unit.nbytes // 4 for unit in units) == sorted(shape.blocks)


def test_a_device_that_shares_ram_holds_the_weights_once(denoiser: Denoiser) -> None:
    from neurolux.memory.backends.choice import replaced
    from neurolux.memory.backends.unified import MpsBackend

    inputs = torch.rand(2, 4)
    expected = denoiser(inputs)
    in_ram = [weakref.ref(weight.untyped_storage()) for weight in [*denoiser.parameters(), *denoiser.buffers()]]
    with replaced(MpsBackend()):
        residency = residency_of(denoiser)
        residency.place(float("inf"))
        assert [storage() for storage in in_ram] == [None] * len(in_ram)
        assert torch.equal(expected, denoiser(inputs))
        masters = {slot.home.data_ptr() for unit in [residency.rest, *residency.units] for slot in unit.slots}
        residency.leave()
        residency.place(float("inf"))
        assert torch.equal(expected, denoiser(inputs))
        assert {tensor.data_ptr() for tensor in [*denoiser.parameters(), *denoiser.buffers()]} == masters


def test_no_more_is_pinned_than_planned(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    from neurolux.memory.backends.choice import backend
    from neurolux.memory.pins import PinBudget

    size = 0
    pinned: list[int] = []

    def host_memory(size: int, *, pin: bool = False) -> torch.Tensor:
        pinned.append(size * pin)
        return torch.empty(size, dtype=torch.uint8)

    residency = residency_of(denoiser, pins=PinBudget(lambda: 3 * size))
    size = residency.units[0].buffer_bytes
    monkeypatch.setattr(backend(), "host_memory", host_memory)
    residency.prepare(0)
    assert sum(pinned) == 3 * size
    assert len(pinned) == BLOCKS
    assert all(unit.flat is not None for unit in residency.units)
