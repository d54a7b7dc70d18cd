"""A GGUF file, and weights in four bits, with what else the pack does: streamed, with a LoRA, compiled."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from neurolux.catalog.models import Model
from neurolux.catalog.reading import read_catalog
from neurolux.families.registry import family_of
from neurolux.library.single_files import complete, files_model
from safetensors.torch import save_file

from tests.pack.comfy_server import comfyui_dir
from tests.pack.loading.test_single_files import FLUX_LAYOUTS, put, ready, shelf_of
from tests.pack.pipelines import borrow, budget_for, sample_with
from tests.tiny_adapters import ATTENTION, lora_state
from tests.tiny_files import llama_t5, tiny_flux, write_gguf

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
KINDS = {"Q8_0": "as-is", "Q4_0": "as-is", "nf4": "nf4"}
"""What is loaded, with its precision; nf4 is made of the safetensors file."""


@pytest.fixture(scope="module")
def flux() -> Any:
    """A FLUX with guidance, as diffusers has it."""
    return ready(tiny_flux(comfyui_dir(), guidance=True))


@pytest.fixture(scope="module")
def models(flux: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """A model for each of KINDS."""
    found = {}
    for kind in KINDS:
        root = tmp_path_factory.mktemp(kind)
        files = FLUX_LAYOUTS["original names"](flux)
        if kind == "nf4":
            main = put(root, files)
        else:
            main = root / "diffusion_models" / f"own-{kind}.gguf"
            main.parent.mkdir()
            write_gguf(main, files.pop("diffusion_models/flux.safetensors"), kind)
            put(root, files)
        model = files_model(
            family_of("flux"), complete(family_of("flux"), {"transformer": main}, shelf_of(root)), read_catalog()
        )
        found[kind] = replace(model, name=f"{model.name}-{kind}")
    return found


@pytest.fixture(scope="module")
def lora(flux: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA for it."""
    path = tmp_path_factory.mktemp("loras") / "style.safetensors"
    save_file(lora_state(flux, {"transformer": ATTENTION}, rank=4, seed=1), path)
    return path


def handle_of(models: dict[str, Model], kind: str, offload: str = "none", **choices: Any) -> Any:
    """One of the models, loaded."""
    from neurolux.loading.store import load_handle

    return load_handle(models[kind], (), precision=KINDS[kind], offload=offload, **choices)


def make_image(handle: Any) -> torch.Tensor:
    """What it makes of a prompt."""
    return sample_with(borrow(handle), handle)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offload", ["stream", "sequential", "disk"])
def test_streamed_weights_make_the_image_of_resident_ones(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch, kind: str, offload: str
) -> None:
    from neurolux.memory import placement

    resident = handle_of(models, kind)
    expected = make_image(resident)
    assert borrow(resident).placement.in_place("transformer")
    monkeypatch.setattr(placement, "device_budget", budget_for(0.0))
    streamed = handle_of(models, kind, offload)
    assert torch.equal(expected, make_image(streamed))
    assert borrow(streamed).placement._patchers["transformer"].residency.streamed_bytes > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offload", ["none", "stream"])
def test_a_lora_acts_on_them_and_leaves_no_trace(
    models: dict[str, Model], lora: Path, monkeypatch: pytest.MonkeyPatch, kind: str, offload: str
) -> None:
    from neurolux.adapters.lora.applied import with_lora
    from neurolux.loading.handle import AppliedLora
    from neurolux.memory import placement
    from neurolux.weights.stamps import stamp_file

    monkeypatch.setattr(placement, "device_budget", budget_for(0.0))
    base = handle_of(models, kind, offload)
    before = make_image(base)
    applied = with_lora((), AppliedLora(stamp_file(lora.name, lora), 0.8, 0.8))
    changed = make_image(replace(base, loras=applied))
    assert not torch.allclose(before, changed, atol=0.02)
    assert torch.equal(before, make_image(base))
    weaker = with_lora((), AppliedLora(stamp_file(lora.name, lora), 1e-6, 0.0))
    assert torch.allclose(before, make_image(replace(base, loras=weaker)), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_compile_makes_the_same_image_of_them(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from neurolux.loading import compiled

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    expected = make_image(handle_of(models, kind))
    handle = handle_of(models, kind, compile=True)
    assert torch.allclose(expected, make_image(handle), atol=1e-5)
    assert borrow(handle).take_warnings() == []


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
@pytest.mark.parametrize("offload", ["none", "disk"])
def test_a_t5_out_of_a_gguf_encodes_as_its_numbers_do(
    flux: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, offload: str
) -> None:
    """Plain transformers, with the numbers that the gguf package makes of the file, is what it must equal.

    In half precision: that is what diffusers decodes to.
    """
    from neurolux.loading.store import load_handle
    from neurolux.memory import placement
    from neurolux.stages.prompts.encode import encode

    monkeypatch.setattr(placement, "device_budget", budget_for(0.0))
    files = FLUX_LAYOUTS["original names"](flux)
    own = llama_t5(files.pop("text_encoders/t5xxl_fp16.safetensors"))
    main = put(tmp_path, files)
    path = tmp_path / "text_encoders" / f"t5-v1_1-xxl-encoder-{kind}.gguf"
    write_gguf(path, own, kind, "t5encoder")
    source = complete(family_of("flux"), {"transformer": main}, shelf_of(tmp_path))
    assert source.components["text_encoder_2"] == path
    model = files_model(family_of("flux"), source, read_catalog())
    handle = load_handle(model, (), precision="fp32", offload=offload)
    loaded = borrow(handle)
    embeds = encode(loaded, "a red fox")[0][0]
    if kind != "F16":
        assert loaded.placement.planned("text_encoder_2").storage == "gguf"
        held = {part.component: part.bytes for part in loaded.placement.memory()}["text_encoder_2"]
        plain = sum(weight.nbytes for weight in flux.text_encoder_2.parameters())
        blocks = sum(weight.nbytes for weight in flux.text_encoder_2.encoder.block.parameters())
        assert held < plain - blocks / 2

    expected = copy.deepcopy(flux.text_encoder_2)
    decoded = {tensor.name: decoded_tensor(tensor) for tensor in gguf.GGUFReader(path).tensors}
    with torch.no_grad():
        for name, value in llama_t5(dict(expected.named_parameters())).items():
            value.copy_(decoded[name])
        tokens = flux.tokenizer_2(
            "a red fox", padding="max_length", max_length=model.max_sequence_length, return_tensors="pt"
        )
        numbers = expected(tokens.input_ids)[0]
    assert torch.allclose(embeds, numbers, atol=1e-4)
    before = flux.text_encoder_2(tokens.input_ids)[0]
    assert (before - embeds).abs().max() > (0 if kind == "F16" else 1e-3)


def decoded_tensor(tensor: Any) -> torch.Tensor:
    """The numbers of a GGUF's tensor, by the gguf package."""
    shape = [int(side) for side in reversed(tensor.shape.tolist())]
    numbers = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).view(shape)
    return numbers if tensor.tensor_type == gguf.GGMLQuantizationType.F32 else numbers.half().float()
