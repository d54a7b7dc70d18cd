"""Weights in fewer bits: they really lie so in memory, and the latents stay near those of fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from diffusers.hooks import apply_layerwise_casting
from neurolux.catalog.reading import read_catalog
from neurolux.errors import WeightsMissing
from neurolux.families.registry import family_of
from neurolux.library.single_files import complete, files_model

from tests.pack.comfy_server import comfyui_dir
from tests.pack.loading.test_single_files import (
    FLUX_LAYOUTS,
    build,
    encoders,
    make_image,
    put,
    ready,
    sdxl_checkpoint,
    shelf_of,
)
from tests.tiny_files import Tensors, scaled_fp8, tiny_flux, tiny_sdxl, write_gguf

pytestmark = pytest.mark.usefixtures("comfy_modules")
FP8, INT8, NIBBLES = torch.float8_e4m3fn, torch.int8, torch.uint8
TOLERANCES = {"fp8": 0.1, "int8": 0.02, "nf4": 0.25, "Q8_0": 0.02, "Q4_0": 0.3, "scaled fp8": 0.1}
"""Distance of the latents from those of fp32, relative to their size; measured, with a margin of about two."""


@pytest.fixture(scope="module")
def flux() -> Any:
    """A FLUX with guidance, as diffusers has it."""
    return ready(tiny_flux(comfyui_dir(), guidance=True))


@pytest.fixture(scope="module")
def sdxl() -> Any:
    """An SDXL, as diffusers has it."""
    return ready(tiny_sdxl(comfyui_dir(), lightning=False))


def flux_of(root: Path, files: dict[str, Tensors], precision: str) -> Any:
    """The pipeline of single files."""
    main = put(root, files)
    model = files_model(
        family_of("flux"), complete(family_of("flux"), {"transformer": main}, shelf_of(root)), read_catalog()
    )
    return build(model, precision)


def latents(pipe: Any) -> torch.Tensor:
    """What two steps make of a prompt."""
    return make_image(pipe, output_type="latent")


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of latents, relative to their size."""
    return float((found.float() - expected).norm() / expected.norm())


def types(component: torch.nn.Module) -> dict[torch.dtype, float]:
    """The share of the bytes in each type."""
    totals: dict[torch.dtype, int] = {}
    for weight in component.parameters():
        totals[weight.dtype] = totals.get(weight.dtype, 0) + weight.nbytes
    return {kind: total / sum(totals.values()) for kind, total in totals.items()}


def block_types(component: torch.nn.Module) -> set[torch.dtype]:
    """The types of the matrices in its blocks."""
    return {
        weight.dtype
        for name, weight in component.named_parameters()
        if name.startswith(
            ("transformer_blocks", "single_transformer_blocks", "encoder.block", "down_blocks", "up_blo")
        )
        and name.endswith(".stored")
    }


@pytest.mark.parametrize(("precision", "kind"), [("fp8", FP8), ("int8", INT8), ("nf4", NIBBLES)])
def test_flux_in_fewer_bits_is_near(flux: Any, tmp_path: Path, precision: str, kind: torch.dtype) -> None:
    pipe = flux_of(tmp_path, FLUX_LAYOUTS["original names"](flux), precision)
    assert block_types(pipe.transformer) == {kind}
    assert block_types(pipe.text_encoder_2) == {kind}
    assert types(pipe.transformer)[kind] > 0.5
    assert set(types(pipe.vae)) == set(types(pipe.text_encoder)) == {torch.float32}
    before = sum(weight.nbytes for name, weight in flux.transformer.named_parameters() if "blocks" in name)
    after = sum(weight.nbytes for name, weight in pipe.transformer.named_parameters() if "blocks" in name)
    assert after < before * {"fp8": 0.27, "int8": 0.27, "nf4": 0.16}[precision]
    assert 0 < distance(latents(pipe), latents(flux)) < TOLERANCES[precision]


@pytest.mark.parametrize(("precision", "kind"), [("fp8", FP8), ("int8", INT8), ("nf4", NIBBLES)])
def test_sdxl_in_fewer_bits_is_near(sdxl: Any, tmp_path: Path, precision: str, kind: torch.dtype) -> None:
    main = put(tmp_path, {"checkpoints/main.safetensors": sdxl_checkpoint(sdxl)})
    model = files_model(
        family_of("sdxl"), complete(family_of("sdxl"), {"unet": main}, shelf_of(tmp_path)), read_catalog()
    )
    pipe = build(model, precision)
    assert block_types(pipe.unet) == {kind}
    assert set(types(pipe.text_encoder_2)) == {torch.float32}
    assert 0 < distance(latents(pipe), latents(sdxl)) < TOLERANCES[precision]


def test_fp8_equals_diffusers_layerwise_casting(tmp_path: Path) -> None:
    """But for biases, which layerwise casting takes bits from as well: here they are zero."""
    expected = ready(tiny_flux(comfyui_dir(), guidance=True))
    for name, weight in expected.transformer.named_parameters():
        if name.endswith(".bias"):
            weight.zero_()
    pipe = flux_of(tmp_path, FLUX_LAYOUTS["original names"](expected), "fp8")
    for name, block in expected.transformer.named_modules():
        if name in ("transformer_blocks", "single_transformer_blocks"):
            apply_layerwise_casting(block, FP8, torch.float32, skip_modules_pattern=("never",))
    for layer in expected.text_encoder_2.encoder.block.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data = layer.weight.data.to(FP8).to(torch.float32)
    assert torch.equal(latents(pipe), latents(expected))


def test_fp8_files_stay_as_they_are(flux: Any, tmp_path: Path) -> None:
    files = FLUX_LAYOUTS["original names"](flux)
    main = next(iter(files))
    files[main] = {name: value.to(FP8) for name, value in files[main].items()}
    stored = files[main]["single_blocks.1.linear2.weight"]
    pipe = flux_of(tmp_path, files, "fp8")
    layer = pipe.transformer.single_transformer_blocks[1].proj_out
    assert torch.equal(layer.stored.view(torch.uint8), stored.view(torch.uint8))
    assert distance(latents(pipe), latents(flux)) < 0.2
    widened = flux_of(tmp_path, files, "fp32")
    assert torch.equal(widened.transformer.single_transformer_blocks[1].proj_out.weight, stored.float())


@pytest.mark.parametrize("precision", ["fp8", "fp32", "int8"])
def test_scaled_fp8_files_keep_their_scales(flux: Any, tmp_path: Path, precision: str) -> None:
    files = {name: scaled_fp8(value) for name, value in FLUX_LAYOUTS["original names"](flux).items()}
    files["vae/ae.safetensors"] = encoders(flux)["vae/ae.safetensors"]
    pipe = flux_of(tmp_path, files, precision)
    assert distance(latents(pipe), latents(flux)) < TOLERANCES["scaled fp8"]
    query = pipe.transformer.transformer_blocks[0].attn.to_q
    if precision == "fp8":
        name = "double_blocks.0.img_attn.qkv."
        main = files["diffusion_models/flux.safetensors"]
        assert torch.equal(query.stored.float(), main[name + "weight"][:256].float())
        assert query.scale == main[name + "scale_weight"]
    expected = flux.transformer.transformer_blocks[0].attn.to_q.weight
    assert torch.allclose(query.weight, expected, atol=float(expected.abs().max()) / 12)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_gguf_is_decoded_layer_by_layer(flux: Any, tmp_path: Path, kind: str) -> None:
    files = FLUX_LAYOUTS["original names"](flux)
    path = tmp_path / "diffusion_models" / f"flux1-dev-{kind}.gguf"
    path.parent.mkdir()
    write_gguf(path, files.pop("diffusion_models/flux.safetensors"), kind)
    put(tmp_path, files)
    model = files_model(
        family_of("flux"), complete(family_of("flux"), {"transformer": path}, shelf_of(tmp_path)), read_catalog()
    )
    pipe = build(model, "as-is")
    layer = pipe.transformer.transformer_blocks[0].ff.net[2]
    assert (type(layer).__name__, layer.weight.dtype) == ("GGUFLinear", torch.uint8)
    assert distance(latents(pipe), latents(flux)) < TOLERANCES[kind]
    halves = [torch.nn.Parameter(weight.data.clone(), requires_grad=False) for weight in pipe.transformer.parameters()]
    for weight, half in zip(pipe.transformer.parameters(), halves, strict=True):
        before = weight.quant_type if hasattr(weight, "quant_type") else None
        weight.data = half.data  # as weights are moved
        assert getattr(weight, "quant_type", None) == before
    assert distance(latents(pipe), latents(flux)) < TOLERANCES[kind]


def test_k_quants_decode_as_the_gguf_package_does(flux: Any, tmp_path: Path) -> None:
    """The package cannot make Q4_K; any bits are a valid block, if its two scales are numbers."""
    from neurolux.loading.fill import dequantized
    from neurolux.weights.files import open_file

    kind = gguf.GGMLQuantizationType.Q4_K
    blocks = np.random.default_rng(3).integers(0, 256, (8, 144), dtype=np.uint8)
    blocks[:, :4] = np.frombuffer(np.array([0.01, 0.002], dtype=np.float16).tobytes(), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "flux")
    writer.add_tensor("k", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = dequantized(open_file(tmp_path / "k.gguf")["k"]).float()
    expected = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
    assert found.shape == (8, 256)
    assert torch.allclose(found, expected, rtol=2e-3, atol=1e-3)


def test_a_gguf_that_is_none_says_so(flux: Any, tmp_path: Path) -> None:
    path = tmp_path / "diffusion_models" / "flux1-dev-Q8_0.gguf"
    path.parent.mkdir()
    path.write_bytes(b"not a gguf" * 100)
    with pytest.raises(
        WeightsMissing, match=r"flux1-dev-Q8_0.gguf is damaged or incomplete \(it cannot be read as GGUF"
    ):
        complete(family_of("flux"), {"transformer": path}, shelf_of(tmp_path))


def test_int8_and_nf4_round_to_the_nearest() -> None:
    from neurolux.weights.quantized.storage import NF4_LEVELS, from_nf4, to_int8, to_nf4

    weight = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    stored, scale = to_int8(weight)
    assert torch.all((stored.float() * scale - weight).abs() <= scale / 2 + 1e-6)
    assert torch.all(stored.abs().amax(dim=1) == 127)  # each row has its own scale
    packed, largest = to_nf4(weight)
    assert packed.shape == (128,)  # 250 values, filled up to 256
    found = from_nf4(packed, largest, weight.shape, torch.float32)
    values = torch.nn.functional.pad(weight.flatten(), (0, 6)).view(-1, 64)
    levels = torch.tensor(NF4_LEVELS)
    nearest = levels[((values / largest[:, None])[..., None] - levels).abs().argmin(-1)] * largest[:, None]
    assert torch.equal(found.flatten(), nearest.flatten()[:250])
