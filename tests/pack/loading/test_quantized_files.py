"""Quantized single files: each format makes the image of its decoded weights, or is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from neurolux.catalog.reading import read_catalog
from neurolux.errors import WeightsMissing
from neurolux.families.registry import family_of
from neurolux.library.inventory import inventory
from neurolux.library.single_files import catalog_files, complete, files_model
from neurolux.weights.download.sources import ModelStatus, model_status
from safetensors.torch import save_file

from tests.pack.comfy_server import comfyui_dir
from tests.pack.loading.test_single_files import build, encoders, make_image, ready, shelf_of, write
from tests.tiny_files import Tensors, bfl_flux, prefixed, state_of, tiny_flux

pytestmark = pytest.mark.usefixtures("comfy_modules")
NAME = "flux1-dev-bnb-nf4-v2.safetensors"
"""A name of the catalog."""
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
Coded = tuple[Tensors, torch.Tensor]
"""What stands in the file for a weight, under the layer's name, and the values that it stands for."""


def text(**values: object) -> torch.Tensor:
    """A JSON text as a tensor."""
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


def nf4(weight: torch.Tensor, block: int = 64, nested: bool = False) -> Coded:
    """As bitsandbytes writes it."""
    groups = weight.flatten().view(-1, block)
    largest = groups.abs().amax(1)
    parts: Tensors = {}
    if nested:
        table = torch.linspace(-1, 1, 256)
        offset = float(largest.mean())
        inner = torch.stack([part.abs().amax() for part in (largest - offset).split(256)])
        outer = inner.repeat_interleave(256)[: len(largest)]
        codes = ((largest - offset) / outer * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        largest_kept = table[codes.long()] * outer + offset
        parts = {".weight.nested_absmax": inner, ".weight.nested_quant_map": table}
        more: dict[str, Any] = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
    else:
        codes, largest_kept, more = largest, largest, {}
    levels = torch.tensor(NF4)
    numbers = (groups / largest_kept[:, None])[..., None].sub(levels).abs().argmin(-1)
    pairs = numbers.view(-1, 2)
    parts |= {
        ".weight": (pairs[:, 0] << 4 | pairs[:, 1]).to(torch.uint8).view(-1, 1),
        ".weight.absmax": codes,
        ".weight.quant_map": levels,
        ".weight.quant_state.bitsandbytes__nf4": text(
            quant_type="nf4", blocksize=block, dtype="bfloat16", shape=list(weight.shape), **more
        ),
    }
    return parts, (levels[numbers] * largest_kept[:, None]).view_as(weight)


def int8(weight: torch.Tensor, rows: bool, note: bool, rotated: int = 0, flat: bool = False) -> Coded:
    """As ComfyUI writes it; ``rotated``: with ConvRot in groups of this size."""
    turned, matrix = weight, torch.empty(0)
    if rotated:
        matrix = seed = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float32)
        while len(matrix) < rotated:
            matrix = torch.kron(matrix, seed)
        matrix = matrix / rotated**0.5
        turned = (weight.view(len(weight), -1, rotated) @ matrix.T).view_as(weight)
    scale = (turned.abs().amax(1, keepdim=True) if rows else turned.abs().max()) / 127
    codes = (turned / scale).round().to(torch.int8)
    values = codes * scale
    if rotated:
        values = (values.view(len(weight), -1, rotated) @ matrix).view_as(weight)
    parts = {".weight": codes, ".weight_scale": scale.flatten() if flat else scale}
    if note:
        convrot = {"convrot": True, "convrot_groupsize": rotated} if rotated else {}
        parts[".comfy_quant"] = text(format="int8_tensorwise", **convrot)
    return parts, values


def bnb_int8(weight: torch.Tensor) -> Coded:
    """As bitsandbytes writes LLM.int8()."""
    scale = weight.abs().amax(1)
    codes = (weight / scale[:, None] * 127).round().to(torch.int8)
    parts = {".weight": codes, ".SCB": scale, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, codes * scale[:, None] / 127


def fp8(weight: torch.Tensor, scale_name: str, note: bool = True, bytes_: bool = False) -> Coded:
    """As ComfyUI writes it."""
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    parts = {".weight": codes.view(torch.uint8) if bytes_ else codes, scale_name: scale, ".input_scale": scale.clone()}
    if note:
        parts[".comfy_quant"] = text(format="float8_e4m3fn", full_precision_matrix_mult=True)
    return parts, codes.to(torch.float32) * scale


READ: dict[str, Callable[[torch.Tensor], Coded]] = {
    "nf4": nf4,
    "nf4 in blocks of 128": lambda weight: nf4(weight, 128) if weight.shape[1] % 128 == 0 else nf4(weight),
    "nf4 nested": lambda weight: nf4(weight, nested=True),
    "int8 of bitsandbytes": bnb_int8,
    "int8": lambda weight: int8(weight, rows=False, note=True),
    "int8 without a note": lambda weight: int8(weight, rows=True, note=False),
    "int8 per row": lambda weight: int8(weight, rows=True, note=True),
    "int8 per row, flat scale": lambda weight: int8(weight, rows=True, note=True, flat=True),
    "int8 convrot": lambda weight: int8(weight, rows=True, note=True, rotated=64),
    "int8 convrot 16": lambda weight: int8(weight, rows=True, note=True, rotated=16),
    "fp8 scaled": lambda weight: fp8(weight, ".scale_weight", note=False),
    "fp8 with a note": lambda weight: fp8(weight, ".weight_scale"),
    "fp8 as bytes": lambda weight: fp8(weight, ".weight_scale", bytes_=True),
}


def coded(weights: Tensors, code: Callable[[torch.Tensor], Coded]) -> tuple[Tensors, Tensors]:
    """The file with its matrices in a format, and the same file with what they stand for."""
    file, plain = dict(weights), dict(weights)
    for name, value in weights.items():
        if value.dim() == 2 and name.endswith(".weight") and value.shape[1] % 64 == 0:
            stem = name.removesuffix(".weight")
            parts, plain[name] = code(value)
            del file[name]
            file |= prefixed(stem, parts)
    return file, plain


@pytest.fixture(scope="module")
def flux() -> Any:
    return ready(tiny_flux(comfyui_dir(), guidance=True))


def image_of(root: Path, main: Tensors, flux: Any, precision: str) -> torch.Tensor:
    """The image that the pack makes with ``main`` as the transformer."""
    for name, weights in {f"diffusion_models/{NAME}": main, **encoders(flux)}.items():
        write(root / name, weights)
    source = complete(family_of("flux"), {"transformer": root / "diffusion_models" / NAME}, shelf_of(root))
    return make_image(build(files_model(family_of("flux"), source, read_catalog()), precision))


def weights_of(flux: Any, layout: str) -> Tensors:
    """Its transformer as a file has it."""
    state = state_of(flux.transformer)
    return bfl_flux(state) if layout == "original" else state


@pytest.fixture(scope="module")
def images_without_weights(flux: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The image of a transformer of zeros, by layout: what no weights that were read may make."""
    return {
        layout: image_of(
            tmp_path_factory.mktemp("zeros"),
            {name: torch.zeros_like(value) for name, value in weights_of(flux, layout).items()},
            flux,
            "fp32",
        )
        for layout in ("original", "diffusers")
    }


@pytest.mark.parametrize(
    ("kind", "layout"), [*((kind, "original") for kind in READ), ("nf4", "diffusers"), ("int8 convrot", "diffusers")]
)
def test_a_format_is_read_as_its_decoded_weights(
    flux: Any, images_without_weights: dict[str, torch.Tensor], tmp_path: Path, kind: str, layout: str
) -> None:
    file, plain = coded(weights_of(flux, layout), READ[kind])
    expected = image_of(tmp_path / "plain", plain, flux, "fp32")
    made = image_of(tmp_path / "coded", file, flux, "fp32")
    assert torch.allclose(made, expected, atol=2e-4)
    assert not torch.allclose(expected, images_without_weights[layout], atol=2e-2)


def noted(kind: str, **more: object) -> Callable[[Tensors], Tensors]:
    """A file with a layer that ComfyUI describes so."""
    return lambda state: {**state, "double_blocks.0.img_mlp.0.comfy_quant": text(format=kind, **more)}


def beside(*names: str, kind: torch.dtype = torch.float32) -> Callable[[Tensors], Tensors]:
    """A file with such tensors beside a weight."""
    return lambda state: {
        **state,
        **{f"double_blocks.0.img_mlp.0.{name}": torch.zeros(4, 4).to(kind) for name in names},
    }


def typed(kind: torch.dtype) -> Callable[[Tensors], Tensors]:
    """A file with a weight of this type."""
    name = "double_blocks.0.img_mlp.0.weight"
    return lambda state: {**state, name: state[name].to(kind)}


REFUSED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "nvfp4": (noted("nvfp4"), "nvfp4"),
    "mxfp8": (noted("mxfp8"), "mxfp8"),
    "w4a4": (noted("convrot_w4a4"), "convrot_w4a4"),
    "svdquant": (noted("svdquant_int4"), "svdquant_int4"),
    "a format of tomorrow": (noted("tomorrow"), "tomorrow"),
    "fp8 by block": (noted("float8_e4m3fn_blockwise", group_size=128), "float8_e4m3fn_blockwise"),
    "fp8 with a group size": (noted("float8_e4m3fn", group_size=128), "float8_e4m3fn with group_size"),
    "fp8 rotated": (noted("float8_e4m3fn", convrot=True), "float8_e4m3fn with convrot"),
    "int8 in odd groups": (noted("int8_tensorwise", convrot=True, convrot_groupsize=48), "groups of 48"),
    "int8 with zero points": (noted("int8_tensorwise", asymmetric=True), "int8_tensorwise with asymmetric"),
    "ModelOpt": (beside("weight_scale", "weight_scale_2"), "nvfp4"),
    "Nunchaku": (beside("qweight", "wscales", "smooth_factor"), "SVDQuant"),
    "GPTQ": (beside("qweight", "qzeros", "scales"), "GPTQ or AWQ"),
    "quanto": (beside("weight._data", "weight._scale"), "quanto"),
    "HQQ": (beside("W_q"), "HQQ"),
    "fp4": (beside("weight.quant_state.bitsandbytes__fp4", kind=torch.uint8), "bitsandbytes"),
    "DeepSeek's fp8": (beside("weight_scale_inv"), "weight_scale_inv"),
    "zero points": (beside("weight_zero_point"), "weight_zero_point"),
    "int8 alone": (typed(torch.int8), "I8 without a scale"),
    "bytes alone": (typed(torch.uint8), "U8 without a scale"),
    "int32": (typed(torch.int32), "I32"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_format_that_cannot_be_read_is_refused_by_its_name(flux: Any, tmp_path: Path, kind: str) -> None:
    change, title = REFUSED[kind]
    state = bfl_flux(state_of(flux.transformer))
    path = write(tmp_path / "diffusion_models" / NAME, change(state))
    for name, weights in encoders(flux).items():
        write(tmp_path / name, weights)
    with pytest.raises(WeightsMissing, match=f"{NAME}.*{title}") as error:
        complete(family_of("flux"), {"transformer": path}, shelf_of(tmp_path))
    assert "again" not in str(error.value)


def test_the_metadata_of_a_file_names_its_format(flux: Any, tmp_path: Path) -> None:
    state = bfl_flux(state_of(flux.transformer))
    path = tmp_path / "diffusion_models" / NAME
    path.parent.mkdir()
    layers = {"layers": {"double_blocks.0.img_mlp.0": {"format": "nvfp4"}}}
    save_file(prefixed("model.diffusion_model.", state), path, {"_quantization_metadata": json.dumps(layers)})
    with pytest.raises(WeightsMissing, match=f"{NAME} has nvfp4"):
        complete(family_of("flux"), {"transformer": path}, shelf_of(tmp_path))


def test_an_encoder_in_an_unknown_format_is_not_taken_by_itself(flux: Any, tmp_path: Path) -> None:
    write(tmp_path / "diffusion_models" / NAME, bfl_flux(state_of(flux.transformer)))
    files = encoders(flux)
    t5 = files["text_encoders/t5xxl_fp16.safetensors"]
    for name, weights in files.items():
        write(tmp_path / name, weights)
    layer = "encoder.block.0.layer.0.SelfAttention.q"
    write(tmp_path / "text_encoders/t5xxl_fp16_a.safetensors", {**t5, f"{layer}.comfy_quant": text(format="mxfp8")})
    source = complete(family_of("flux"), {"transformer": tmp_path / "diffusion_models" / NAME}, shelf_of(tmp_path))
    assert source.components["text_encoder_2"].name == "t5xxl_fp16.safetensors"


IMPOSSIBLE: dict[str, Callable[[Tensors], Tensors]] = {
    "no sides": lambda state: {name: torch.zeros(()) for name in state},
    "one side": lambda state: {name: torch.zeros(3) for name in state},
    "no values": lambda state: {name: torch.zeros(0, 0) for name in state},
    "half of the names": lambda state: {name: value for name, value in state.items() if "norm" in name},
    "packed without a note": lambda state: {name: torch.zeros(8, 1, dtype=torch.uint8) for name in state},
    "a note of no shape": lambda state: {**state, "img_in.weight.quant_state.bitsandbytes__nf4": text(quant_type="x")},
    "a note of no JSON": lambda state: {
        **state, "img_in.weight.quant_state.bitsandbytes__nf4": torch.tensor([123], dtype=torch.uint8)
    },
    "a long note": lambda state: {**state, "img_in.comfy_quant": torch.zeros(100_000, dtype=torch.uint8)},
    "a scale of another size": lambda state: {
        **state, "img_in.weight_scale": torch.ones(3), "img_in.comfy_quant": text(format="int8_tensorwise")
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", [*IMPOSSIBLE, *REFUSED])
def test_a_file_with_a_name_of_the_catalog_takes_nothing_down(flux: Any, tmp_path: Path, kind: str) -> None:
    """Listing all models and what is missing goes on, whatever the file holds."""
    change = IMPOSSIBLE[kind] if kind in IMPOSSIBLE else REFUSED[kind][0]
    for folder in ("diffusion_models", "checkpoints"):
        write(tmp_path / folder / NAME, change(bfl_flux(state_of(flux.transformer))))
    shelf = shelf_of(tmp_path)
    catalog = catalog_files(read_catalog(), shelf)
    for model in catalog.models.values():
        model_status(model)
        assert inventory(model, ModelStatus("missing", "test"), shelf).hint
