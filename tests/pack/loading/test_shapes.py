"""What the planner believes of the models, against the real architectures at full size (on torch's meta device)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from neurolux.catalog.reading import read_catalog
from neurolux.dry_run.architectures import known_architectures
from neurolux.families.parts.architectures import on_meta
from neurolux.families.registry import family_of
from neurolux.families.spec import Make
from neurolux.library.folder_models import folder_model
from neurolux.planning import costs
from neurolux.planning.records import ComputeType, StorageType
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.pack.blocks import lists_of, shallow_flux, shallow_klein, shallow_krea2, shallow_qwen_image, shallow_z_image

pytestmark = pytest.mark.usefixtures("comfy_modules")
CATALOG = read_catalog().models
MODELS = known_architectures()
FLUX = family_of("flux").costs
BF16 = torch.bfloat16


@pytest.mark.parametrize(("name", "component"), [(name, part) for name, parts in MODELS.items() for part in parts])
def test_catalog_counts_are_those_of_the_architectures(name: str, component: str) -> None:
    from neurolux.memory.units import split_into_blocks

    module = on_meta(MODELS[name][component])
    shape = CATALOG[name].components[component]
    assert shape.parameters == sum(weight.numel() for weight in module.parameters())
    _, units = split_into_blocks(module, lists_of(module))
    assert shape.blocks == tuple(sum(slot.home.numel() for slot in unit.slots) for unit in units)


def test_every_component_is_counted() -> None:
    for name, parts in MODELS.items():
        assert set(CATALOG[name].components) == set(parts)


def test_starter_counts_are_those_of_its_files() -> None:
    from neurolux.loading.build import shapes_of, vae_must_upcast
    from neurolux.weights.download.sources import resolve

    model = CATALOG["starter"]
    files = resolve(model, None)
    assert shapes_of(model, None, files) == model.components
    assert vae_must_upcast(files) == model.force_upcast_vae


@pytest.mark.parametrize("name", ["tiny-flux-dev", "tiny-sdxl"])
def test_files_are_divided_into_the_blocks_that_are_streamed(tiny_models: dict[str, Path], name: str) -> None:
    from neurolux.loading.build import build_pipeline, shapes_of
    from neurolux.memory.units import split_into_blocks
    from neurolux.planning.planner import make_plan
    from neurolux.planning.records import Machine, Workload
    from neurolux.weights.download.sources import resolve

    model = folder_model(tiny_models[name])
    assert model is not None
    files = resolve(model, None)
    shapes = shapes_of(model, None, files)
    machine = Machine("cpu", 0, 10**12, bf16=True, fp16=True)
    pipe = build_pipeline(
        model, None, files, make_plan(family_of(model.family).costs, shapes, machine, Workload(64, 64))
    )
    for component, shape in shapes.items():
        _, units = split_into_blocks(pipe.components[component], lists_of(pipe.components[component]))
        assert shape.blocks == tuple(sum(slot.home.numel() for slot in unit.slots) for unit in units)


@pytest.mark.parametrize("storage", ["bf16", "fp8", "int8", "nf4"])
@pytest.mark.parametrize(
    ("name", "component"),
    [("flux-dev", "transformer"), ("flux-dev", "text_encoder_2"), ("sdxl-lightning", "unet")],
)
def test_bytes_are_those_of_the_weights_as_they_are_stored(name: str, component: str, storage: StorageType) -> None:
    from neurolux.weights.quantized.storage import storable_layers

    module = on_meta(MODELS[name][component])
    part = family_of(CATALOG[name].family).components[component].part
    stored = {layer for _, layer in storable_layers(module, part.blocks.prefixes)} if storage != "bf16" else set()
    total, seen = 0.0, set()
    for layer in module.modules():
        for key, weight in layer.named_parameters(recurse=False):
            if id(weight) in seen:  # T5 ties its embedding
                continue
            seen.add(id(weight))
            fewer = layer in stored and key == "weight"
            scales = {"fp8": 0, "int8": 4 * weight.shape[0], "nf4": 4 * weight.numel() / 64} if fewer else {}
            each = {"fp8": 1, "int8": 1, "nf4": 0.5}[storage] if fewer else 2
            total += weight.numel() * each + scales.get(storage, 0)
    planned = costs.weight_bytes(CATALOG[name].components[component], storage, "bf16")
    assert 0.995 * total <= planned <= 1.04 * total


@pytest.mark.parametrize(("name", "component"), [(name, part) for name, parts in MODELS.items() for part in parts])
def test_no_layer_is_larger_than_the_planner_believes(name: str, component: str) -> None:
    module = on_meta(MODELS[name][component])
    largest = max(sum(weight.numel() for weight in layer.parameters(recurse=False)) for layer in module.modules())
    planned = costs.largest_layer(CATALOG[name].components[component])
    assert largest <= planned
    if CATALOG[name].components[component].blocks:  # only those are ever widened
        assert planned <= 2.5 * largest


class Activations(TorchDispatchMode):
    """Adds up the bytes that live at once while a module runs on the meta device."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known = {id(tensor.untyped_storage()) for tensor in [*module.parameters(), *module.buffers()]}
        self._kept = [tensor.untyped_storage() for tensor in [*module.parameters(), *module.buffers()]]
        self._live: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known or key in self._live:
            return

        def gone(_: object) -> None:
            del self._live[key]
            self._now -= size

        self._live[key] = weakref.ref(storage, gone)
        self._now += size
        self.peak = max(self.peak, self._now)


@pytest.fixture
def fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: attention keeps no matrix of scores. On the meta device torch would count one."""

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)


def empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def flux_step(module: Any, side: int, dtype: torch.dtype) -> Any:
    tokens = (side // 16) ** 2
    return module(
        hidden_states=empty(1, tokens, 64, dtype=dtype),
        encoder_hidden_states=empty(1, 512, 4096, dtype=dtype),
        pooled_projections=empty(1, 768, dtype=dtype),
        timestep=empty(1, dtype=dtype),
        img_ids=empty(tokens, 3, dtype=dtype),
        txt_ids=empty(512, 3, dtype=dtype),
        guidance=empty(1, dtype=dtype),
    )


def guided_z_image_step(module: Any, side: int, dtype: torch.dtype) -> Any:
    latents, texts = [empty(16, 1, side // 8, side // 8, dtype=dtype)] * 2, [empty(512, 2560, dtype=dtype)] * 2
    return module(latents, empty(2, dtype=dtype), texts)


def klein_step(module: Any, side: int, dtype: torch.dtype) -> Any:
    tokens = (side // 16) ** 2
    return module(
        hidden_states=empty(1, tokens, 128, dtype=dtype),
        encoder_hidden_states=empty(1, 512, 12288, dtype=dtype),
        timestep=empty(1, dtype=dtype),
        img_ids=empty(1, tokens, 4, dtype=torch.long),
        txt_ids=empty(1, 512, 4, dtype=torch.long),
    )


def qwen_image_step(module: Any, side: int, dtype: torch.dtype) -> Any:
    embed = module.pos_embed  # it keeps tables that are no buffers
    embed.pos_freqs, embed.neg_freqs = (
        torch.empty_like(one, device="meta") for one in (embed.pos_freqs, embed.neg_freqs)
    )
    latents, text = empty(1, (side // 16) ** 2, 64, dtype=dtype), empty(1, 512, 3584, dtype=dtype)
    return module(latents, text, None, empty(1, dtype=dtype), [[(1, side // 16, side // 16)]])


def krea2_step(module: Any, side: int, dtype: torch.dtype) -> Any:
    tokens = (side // 16) ** 2
    seen = torch.ones(1, 512, dtype=torch.bool, device="meta")
    places = empty(512 + tokens, 3, dtype=torch.float32)
    return module(
        empty(1, tokens, 64, dtype=dtype), empty(1, 512, 12, 2560, dtype=dtype), empty(1, dtype=dtype), places, seen
    )


def sdxl_step(module: Any, side: int, dtype: torch.dtype) -> Any:
    added = {"text_embeds": empty(1, 1280, dtype=dtype), "time_ids": empty(1, 6, dtype=dtype)}
    latent, text = empty(1, 4, side // 8, side // 8, dtype=dtype), empty(1, 77, 2048, dtype=dtype)
    return module(latent, empty(dtype=dtype), text, added_cond_kwargs=added)


def decode(module: Any, side: int, dtype: torch.dtype) -> Any:
    return module.decode(empty(1, module.config.latent_channels, side // 8, side // 8, dtype=dtype))


def decode_in_tiles(module: Any, side: int, dtype: torch.dtype) -> Any:
    module.enable_tiling()
    module.tile_sample_min_size, module.tile_latent_min_size = costs.TILE, costs.TILE // 8
    return decode(module, side, dtype)


def encode(module: Any, _: int, __: torch.dtype) -> Any:
    return module(torch.zeros(1, 512, dtype=torch.long, device="meta"))


def encode_image(module: Any, side: int, dtype: torch.dtype) -> Any:
    return module.encode(empty(1, 3, side, side, dtype=dtype))


def encode_states(module: Any, _: int, __: torch.dtype) -> Any:
    return module(torch.zeros(1, 512, dtype=torch.long, device="meta"), output_hidden_states=True)


def encode_uncut(module: Any, _: int, __: torch.dtype) -> Any:
    return module(torch.zeros(1, 1058, dtype=torch.long, device="meta"), output_hidden_states=True)


def cases() -> Iterator[Any]:
    """What runs, and what the planner reserves for it, workspaces aside."""
    sizes: tuple[tuple[int, ComputeType], ...] = ((512, "bf16"), (1024, "bf16"), (1024, "fp32"))
    for side, compute in sizes:
        size = (side, side, compute)
        yield shallow_flux, flux_step, side, compute, costs.sample_bytes(family_of("flux").costs, *size)
        yield (
            MODELS["sdxl-lightning"]["unet"],
            sdxl_step,
            side,
            compute,
            costs.sample_bytes(family_of("sdxl").costs, *size),
        )
        workspace = costs.CONVOLUTION_BYTES * side**2 / 1024**2
        yield MODELS["flux-dev"]["vae"], decode, side, compute, costs.decode_bytes(FLUX, *size) - workspace
    tiled = costs.decode_bytes(FLUX, 1024, 1024, "bf16", tile=costs.TILE) - costs.CONVOLUTION_BYTES / 4
    yield MODELS["sdxl-lightning"]["vae"], decode_in_tiles, 1024, "bf16", tiled
    yield MODELS["flux-dev"]["text_encoder_2"], encode, 0, "bf16", costs.encode_bytes(FLUX)
    z_image = family_of("z-image").costs
    yield shallow_z_image, guided_z_image_step, 1024, "bf16", costs.sample_bytes(z_image, 1024, 1024, passes=2)
    yield MODELS["z-image"]["text_encoder"], encode_states, 0, "bf16", costs.encode_bytes(z_image)
    klein = family_of("flux2").costs
    yield shallow_klein, klein_step, 1024, "bf16", costs.sample_bytes(klein, 1024, 1024, passes=2)
    yield MODELS["flux2-klein-9b"]["text_encoder"], encode_states, 0, "bf16", costs.encode_bytes(klein)
    krea = family_of("krea2").costs
    for side in (512, 1024):
        yield shallow_krea2, krea2_step, side, "bf16", costs.sample_bytes(krea, side, side)
    qwen = family_of("qwen-image").costs
    yield shallow_qwen_image, qwen_image_step, 1024, "bf16", costs.sample_bytes(qwen, 1024, 1024)
    yield MODELS["qwen-image"]["text_encoder"], encode_uncut, 0, "bf16", costs.encode_bytes(qwen)
    workspace = costs.CONVOLUTION_BYTES
    yield MODELS["qwen-image"]["vae"], decode, 1024, "bf16", costs.decode_bytes(qwen, 1024, 1024) - workspace
    yield (
        MODELS["qwen-image"]["vae"],
        encode_image,
        1024,
        "bf16",
        costs.encode_image_bytes(qwen, 1024, 1024) - workspace,
    )


@pytest.mark.usefixtures("fused_attention")
@pytest.mark.parametrize(("make", "run", "side", "compute", "reserved"), cases())
def test_working_room_is_what_activations_take(
    make: Make, run: Callable[..., Any], side: int, compute: ComputeType, reserved: float
) -> None:
    dtype = {"bf16": BF16, "fp32": torch.float32}[compute]
    module = on_meta(make, dtype)
    activations = Activations(module)
    with torch.no_grad(), activations:
        run(module, side, dtype)
    assert activations.peak <= reserved <= 1.6 * activations.peak
