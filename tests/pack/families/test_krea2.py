"""Krea 2: its image is that of plain diffusers, from its folder and from all kinds of single files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Krea2Pipeline, Krea2Transformer2DModel
from neurolux.errors import InvalidParameter, WeightsMissing
from neurolux.families.files.identify import detect_lora, identify, read_kind
from neurolux.families.registry import family_of
from neurolux.weights.file_kinds import TensorInfo
from neurolux.weights.headers import WeightHeader
from transformers import Qwen3VLConfig, Qwen3VLModel

from tests.pack.applied import with_loras
from tests.pack.comfy_server import comfyui_dir
from tests.pack.families.parity import model_of, plain
from tests.pack.loading.test_single_files import build, ready
from tests.pack.loading.test_single_files import make_image as make_file_image
from tests.pack.pipelines import PROMPT, borrow, budget_for, handle_for, sample_with
from tests.pack.stages.test_images import encoded, redraw, some_image
from tests.tiny_files import Tensors, as_type, prefixed, scaled_fp8, state_of, write, write_gguf
from tests.tiny_krea2 import comfy_encoder, llama_encoder, original_krea2, original_name, tiny_krea2
from tests.tiny_qwen import wan_vae

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
NEGATIVE = "a very small dog"
GUIDANCE = 4.0


def image(pipe: Any, **more: Any) -> torch.Tensor:
    """(1, H, W, 3) in [0, 1]."""
    call = {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 2, "guidance_scale": GUIDANCE,
        "width": 128, "height": 128, "output_type": "pt", "generator": torch.Generator().manual_seed(7), **more,
    }  # fmt: skip
    with torch.no_grad():
        return pipe(**call).images.permute(0, 2, 3, 1).float()


@pytest.fixture(scope="module")
def turbo(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a distilled model."""
    folder = shutil.copytree(tiny_models["tiny-krea2"], tmp_path_factory.mktemp("turbo") / "tiny-krea2-turbo")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "is_distilled": True}))
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("offload", ["none", "stream"])
def test_its_image_is_that_of_diffusers(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, precision: str, offload: str
) -> None:
    from neurolux.memory import placement

    monkeypatch.setattr(placement, "device_budget", budget_for(0))
    folder = tiny_models["tiny-krea2"]
    expected = image(plain(folder, precision, Krea2Pipeline))
    handle = handle_for(folder, precision=precision, offload=offload)
    made = sample_with(borrow(handle), handle, 2, negative=NEGATIVE, guidance=GUIDANCE + 1)
    assert torch.equal(made, expected)


def test_turbo_is_neither_guided_nor_shifted_by_size(tiny_models: dict[str, Path], turbo: Path) -> None:
    pipe = plain(turbo, "fp32", Krea2Pipeline)
    expected = image(pipe, guidance_scale=0.0)
    pipe.register_to_config(is_distilled=False)
    assert not torch.equal(image(pipe, guidance_scale=0.0), expected)
    handle = handle_for(turbo, precision="fp32")
    assert (handle.model.defaults.num_inference_steps, handle.model.defaults.guidance_scale) == (8, 0.0)
    assert torch.equal(sample_with(borrow(handle), handle, 2), expected)


def test_guidance_needs_no_negative_prompt(tiny_models: dict[str, Path]) -> None:
    expected = image(plain(tiny_models["tiny-krea2"], "fp32", Krea2Pipeline), negative_prompt=None)
    handle = handle_for(tiny_models["tiny-krea2"], precision="fp32")
    assert torch.equal(sample_with(borrow(handle), handle, 2, guidance=GUIDANCE + 1), expected)


def test_norms_stay_in_fp32_and_what_reads_no_text_is_not_loaded(tiny_models: dict[str, Path]) -> None:
    loaded = borrow(handle_for(tiny_models["tiny-krea2"], precision="bf16"))
    parts = loaded.pipe.components
    types = {"norm" in name: weight.dtype for name, weight in parts["transformer"].named_parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    names = [name for name, _ in parts["text_encoder"].named_parameters()]
    assert names
    assert all(name.startswith("language_model.") for name in names)


def test_an_image_to_begin_with_is_refused_with_the_families_that_take_one(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(InvalidParameter, match="model of Krea 2, which has no image-to-image here; choose .*FLUX"):
        redraw(tiny_models["tiny-krea2"], encoded(some_image()), steps=4, strength=0.7)


@pytest.mark.parametrize("name", ["transformer", "text_encoder"])
def test_shapes_tell_the_configuration_of_the_published_parts(name: str) -> None:
    from neurolux.families.parts.architectures import on_meta
    from transformers import Qwen3VLTextConfig

    real = {
        "transformer": Krea2Transformer2DModel,
        "text_encoder": lambda: Qwen3VLModel(
            Qwen3VLConfig(
                text_config=Qwen3VLTextConfig(
                    hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_key_value_heads=8
                ).to_dict()
            )
        ),
    }
    part = family_of("krea2").components[name].part
    shapes = {key: tuple(value.shape) for key, value in on_meta(real[name]).state_dict().items()}
    read = {key: shape for key, shape in shapes.items() if not key.startswith(part.unread or "-")}
    made = on_meta(lambda: part.empty(part.config(read), None))
    assert {key: tuple(value.shape) for key, value in made.state_dict().items()} == read


# Single files


@pytest.fixture(scope="module")
def krea() -> Any:
    """A Krea 2 with the vocabulary of the real one, as diffusers has it."""
    return ready(tiny_krea2(comfyui_dir()))


@pytest.fixture(scope="module")
def expected(krea: Any) -> torch.Tensor:
    """What diffusers makes of it."""
    return file_image(krea)


def file_image(pipe: Any) -> torch.Tensor:
    """One image without guidance, as numbers."""
    with torch.no_grad():
        return make_file_image(pipe, guidance_scale=0.0)


def files_of(krea: Any, root: Path, main: Mapping[str, Tensors], **other: Tensors) -> Path:
    """Write ``main`` and the files beside it; returns the path of the first."""
    beside = {
        "text_encoders/qwen3vl_4b_bf16.safetensors": other.get("encoder") or comfy_encoder(state_of(krea.text_encoder)),
        "vae/qwen_image_vae.safetensors": wan_vae(state_of(krea.vae)),
    }
    return [write(root / name, tensors) for name, tensors in {**main, **beside}.items()][0]


LAYOUTS: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "its authors' names": ("diffusion_models/krea2_raw_bf16.safetensors", original_krea2),
    "diffusers' names": ("diffusion_models/my-krea.safetensors", lambda state: state),
    "a prefix": (
        "checkpoints/my-krea.safetensors", lambda state: prefixed("model.diffusion_model.", original_krea2(state))
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_its_files_make_the_image_of_its_folder(krea: Any, expected: torch.Tensor, tmp_path: Path, layout: str) -> None:
    name, spelled = LAYOUTS[layout]
    own = {"encoder": state_of(krea.text_encoder)} if layout == "diffusers' names" else {}
    main = files_of(krea, tmp_path, {name: spelled(state_of(krea.transformer))}, **own)
    assert read_kind(main).kind == "Krea 2 transformer"
    assert read_kind(tmp_path / "text_encoders/qwen3vl_4b_bf16.safetensors").kind == "Qwen3-VL encoder"
    model = model_of("krea2", main, tmp_path)
    assert (model.defaults.num_inference_steps, model.defaults.guidance_scale) == (28, 5.5)
    assert torch.equal(file_image(build(model)), expected)


def test_a_turbo_file_is_one_by_its_name(krea: Any, tmp_path: Path) -> None:
    main = files_of(
        krea, tmp_path, {"diffusion_models/krea2_turbo_bf16.safetensors": original_krea2(state_of(krea.transformer))}
    )
    model = model_of("krea2", main, tmp_path)
    assert (model.defaults.num_inference_steps, model.defaults.guidance_scale) == (8, 0.0)
    assert not model.limits.negative_prompt
    krea.register_to_config(is_distilled=True)
    try:
        distilled = file_image(krea)
    finally:
        krea.register_to_config(is_distilled=False)
    assert torch.equal(file_image(build(model)), distilled)


FORMS: dict[str, Callable[[Tensors], Tensors]] = {"fp8": as_type(torch.float8_e4m3fn), "scaled fp8": scaled_fp8}


@pytest.mark.parametrize("form", FORMS)
def test_fewer_bits_make_nearly_the_image_of_its_folder(
    krea: Any, expected: torch.Tensor, tmp_path: Path, form: str
) -> None:
    encoder = scaled_fp8(comfy_encoder(state_of(krea.text_encoder)))
    main = files_of(
        krea,
        tmp_path,
        {"diffusion_models/krea2_raw_fp8_scaled.safetensors": FORMS[form](original_krea2(state_of(krea.transformer)))},
        encoder=encoder,
    )
    made = file_image(build(model_of("krea2", main, tmp_path)))
    assert 0 < (made - expected).abs().mean() < 0.05


@pytest.mark.parametrize("every", [False, True])
def test_a_gguf_makes_nearly_the_image_of_its_folder(
    krea: Any, expected: torch.Tensor, tmp_path: Path, every: bool
) -> None:
    write(tmp_path / "vae/qwen_image_vae.safetensors", wan_vae(state_of(krea.vae)))
    main = tmp_path / "diffusion_models/krea2-raw-Q8_0.gguf"
    encoder = tmp_path / "text_encoders/Qwen3-VL-4B-Instruct-Q8_0.gguf"
    for path in (main, encoder):
        path.parent.mkdir()
    write_gguf(main, original_krea2(state_of(krea.transformer)), "Q8_0", "krea2", every=every)
    write_gguf(encoder, llama_encoder(state_of(krea.text_encoder)), "Q8_0", "qwen3vl")
    assert read_kind(main).kind == "Krea 2 transformer"
    assert read_kind(encoder).kind == "Qwen3 encoder or Qwen3-VL encoder"
    made = file_image(build(model_of("krea2", main, tmp_path)))
    assert 0 < (made - expected).abs().mean() < 0.03
    encoder.rename(encoder.with_name("Qwen3-4B-Instruct-Q8_0.gguf"))  # the same shapes, other weights
    with pytest.raises(WeightsMissing, match="no Qwen3-VL encoder found"):
        model_of("krea2", main, tmp_path)


def test_the_authors_names_are_those_that_diffusers_converts(krea: Any) -> None:
    from diffusers.loaders.single_file_utils import convert_krea2_transformer_checkpoint_to_diffusers

    state = state_of(krea.transformer)
    theirs = convert_krea2_transformer_checkpoint_to_diffusers(original_krea2(state))
    assert theirs.keys() == state.keys()
    assert all(torch.equal(theirs[name].view_as(value), value) for name, value in state.items())


KINDS = {
    "itself": (["first.weight", "txtfusion.projector.weight"], "Krea 2 transformer"),
    "its encoder": (
        ["model.layers.0.self_attn.q_norm.weight", "visual.patch_embed.proj.weight"], "Qwen3-VL encoder"
    ),
    "Qwen3": (["model.layers.0.self_attn.q_norm.weight", "model.embed_tokens.weight"], "Qwen3 encoder"),
    "a mixture of experts": (
        [
            "model.layers.0.self_attn.q_norm.weight", "visual.patch_embed.proj.weight", "model.layers.0.mlp.gate.weight"
        ],
        "file of another kind",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", KINDS)
def test_nothing_else_is_taken_for_it(form: str) -> None:
    names, kind = KINDS[form]
    found = identify(WeightHeader(Path("x.safetensors"), {name: TensorInfo("BF16", (4, 4), 32) for name in names}, {}))
    assert found.kind.startswith(kind)


# LoRA files

LORAS = {
    "diffusers": ("transformer.transformer_blocks.0.ff.gate.lora_A.weight", "krea2"),
    "its authors'": ("diffusion_model.blocks.0.attn.wq.lora_A.weight", "krea2"),
    "the text": ("diffusion_model.txtfusion.refiner_blocks.0.mlp.up.lora_A.weight", "krea2"),
    "kohya": ("lora_unet_blocks_3_mlp_down.lora_down.weight", "krea2"),
    "attention alone": ("transformer.transformer_blocks.27.attn.to_q.lora_A.weight", "krea2"),
    "attention that FLUX.2 dev has": ("transformer.transformer_blocks.7.attn.to_q.lora_A.weight", "flux2"),
    "Wan": ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "wan"),
}


@pytest.mark.parametrize("form", LORAS)
def test_a_lora_is_recognized_by_its_layers(form: str) -> None:
    name, family = LORAS[form]
    found = detect_lora({name: (4, 6144)})
    assert family in (found.family, *found.also)


SPELLED: dict[str, Callable[[str], str]] = {
    "transformer., lora_A": lambda name: f"transformer.{name}",
    "diffusion_model., lora_A": lambda name: f"diffusion_model.{original_name(name + '.').rstrip('.')}",
    "diffusion_model., lora_down": lambda name: f"diffusion_model.{original_name(name + '.').rstrip('.')}",
    "kohya, lora_down": lambda name: f"lora_unet_{original_name(name + '.').rstrip('.').replace('.', '_')}",
    "kohya with diffusers' names, lora_down": lambda name: f"lora_unet_{name.replace('.', '_')}",
    "bare, lora_down": lambda name: name,
}
LAYERS = {
    "transformer_blocks.0.attn.to_q": (32, 32),
    "transformer_blocks.1.ff.down": (32, 64),
    "text_fusion.refiner_blocks.0.attn.to_gate": (16, 16),
}


@pytest.mark.parametrize("form", SPELLED)
def test_a_lora_has_the_effect_of_the_summed_weights(tiny_models: dict[str, Path], tmp_path: Path, form: str) -> None:
    pipe = plain(tiny_models["tiny-krea2"], "fp32", Krea2Pipeline)
    off = {"negative_prompt": None, "guidance_scale": 0.0}
    before = image(pipe, **off)
    generator = torch.Generator().manual_seed(1)
    new = "lora_A" in form
    tensors: Tensors = {}
    for name, (outputs, inputs) in LAYERS.items():
        down = torch.randn(2, inputs, generator=generator) * 0.2
        up = torch.randn(outputs, 2, generator=generator) * 0.2
        stem = SPELLED[form](name)
        tensors[f"{stem}.{'lora_A' if new else 'lora_down'}.weight"] = down
        tensors[f"{stem}.{'lora_B' if new else 'lora_up'}.weight"] = up
        if not new:
            tensors[f"{stem}.alpha"] = torch.tensor(1.0)
        pipe.transformer.get_submodule(name).weight.data += up @ down * (1.0 if new else 0.5)
    expected = image(pipe, **off)
    handle = handle_for(tiny_models["tiny-krea2"], precision="fp32")
    handle = with_loras(handle, (write(tmp_path / "some.safetensors", tensors), 1.0, 1.0))
    made = sample_with(borrow(handle), handle, 2, guidance=1.0)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(made, before, atol=1e-4)
