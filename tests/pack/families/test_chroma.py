"""Chroma: its image is that of plain diffusers, with the padding hidden as it was trained, or visible if wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ChromaImg2ImgPipeline, ChromaInpaintPipeline, ChromaPipeline
from neurolux.errors import InvalidParameter, WeightsMissing
from neurolux.families.files.identify import detect_lora, read_kind
from neurolux.families.registry import family_of
from neurolux.library.single_files import complete
from PIL import Image

from tests.pack.applied import with_loras
from tests.pack.comfy_server import comfyui_dir
from tests.pack.families.parity import model_of, plain
from tests.pack.loading.test_single_files import build, ready, shelf_of
from tests.pack.loading.test_single_files import make_image as make_file_image
from tests.pack.pipelines import PROMPT, borrow, budget_for, handle_for, make_image, sample_with
from tests.pack.stages.test_images import encoded, redraw, some_image, some_mask
from tests.tiny_files import (
    Tensors,
    bfl_flux,
    ldm_vae,
    original_chroma,
    prefixed,
    scaled_fp8,
    state_of,
    tiny_chroma,
    tiny_flux,
    write,
    write_gguf,
)

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
NEGATIVE = "a dog"


def prompts(pipe: Any, convert: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Both prompts, their masks in the type that ``convert`` makes of them."""
    with torch.no_grad():
        embeds, _, mask, against, _, against_mask = pipe.encode_prompt(PROMPT, NEGATIVE, max_sequence_length=512)
    return {
        "prompt_embeds": embeds,
        "prompt_attention_mask": convert(mask),
        "negative_prompt_embeds": against,
        "negative_prompt_attention_mask": convert(against_mask),
    }


def image(pipe: Any, given: Mapping[str, Any], **more: Any) -> torch.Tensor:
    """(1, H, W, 3) in [0, 1]."""
    call = {
        "num_inference_steps": 2, "guidance_scale": 3.0, "width": 128, "height": 128, "output_type": "pt",
        "generator": torch.Generator().manual_seed(7), **given, **more,
    }  # fmt: skip
    return pipe(**call).images.permute(0, 2, 3, 1).float()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("offload", ["none", "stream", "sequential"])
def test_its_image_is_that_of_diffusers_with_the_padding_hidden(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, precision: str, offload: str
) -> None:
    from neurolux.memory import placement

    monkeypatch.setattr(placement, "device_budget", budget_for(0))
    folder = tiny_models["tiny-chroma"]
    pipe = plain(folder, precision, ChromaPipeline)
    expected = image(pipe, prompts(pipe, lambda mask: mask.bool()))
    handle = handle_for(folder, precision=precision, offload=offload)
    assert torch.equal(sample_with(borrow(handle), handle, 2, negative=NEGATIVE, guidance=3.0), expected)


def test_the_padding_is_as_visible_as_in_diffusers_where_that_is_wanted(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models["tiny-chroma"]
    pipe = plain(folder, "fp32", ChromaPipeline)
    visible, hidden = (image(pipe, prompts(pipe, convert)) for convert in (lambda m: m, lambda m: m.bool()))
    assert not torch.equal(visible, hidden)
    assert torch.equal(visible, image(pipe, {"prompt": PROMPT, "negative_prompt": NEGATIVE}))
    handle = handle_for(folder, precision="fp32")
    loaded = borrow(handle)
    monkeypatch.setenv("NEUROLUX_PADDING", "diffusers")
    assert torch.equal(sample_with(loaded, handle, 2, negative=NEGATIVE, guidance=3.0), visible)
    monkeypatch.setenv("NEUROLUX_PADDING", "trained")
    assert torch.equal(sample_with(loaded, handle, 2, negative=NEGATIVE, guidance=3.0), hidden)
    monkeypatch.setenv("NEUROLUX_PADDING", "none")
    with pytest.raises(InvalidParameter, match="NEUROLUX_PADDING is 'none'; use trained or diffusers"):
        sample_with(loaded, handle, 2)


@pytest.mark.parametrize("kind", [ChromaImg2ImgPipeline, ChromaInpaintPipeline])
def test_an_image_made_of_an_image_is_that_of_diffusers(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    folder = tiny_models["tiny-chroma"]
    masked = kind is ChromaInpaintPipeline
    pipe = plain(folder, "fp32", kind)
    pipe.transformer.register_to_config(guidance_embeds=False)  # the inpaint pipeline of 0.42.1 reads it of any model
    given = prompts(pipe, lambda mask: mask)
    more: dict[str, Any] = {"image": make_image(some_image()), "strength": 0.7, "num_inference_steps": 4}
    if masked:
        more["mask_image"] = Image.fromarray((some_mask()[0].numpy() * 255).astype("uint8"))
    expected = image(pipe, given, **more)
    masks = [pipe._prepare_attention_mask(1, 64, torch.float32, given["prompt_attention_mask"].bool())]
    assert masks[0].dtype == torch.float32  # so diffusers leaves the padding visible whatever it is given
    made = {}
    for padding in ("diffusers", "trained"):
        monkeypatch.setenv("NEUROLUX_PADDING", padding)
        made[padding] = redraw(
            folder,
            encoded(some_image(), some_mask() if masked else None),
            steps=4, strength=0.7, guidance=3.0, negative=NEGATIVE, precision="fp32",
        )  # fmt: skip
    assert torch.equal(made["diffusers"], expected)
    assert not torch.equal(made["trained"], expected)


@pytest.fixture(scope="module")
def chroma() -> Any:
    """A Chroma with the vocabulary of the real one, as diffusers has it."""
    return ready(tiny_chroma(comfyui_dir()))


def file_image(pipe: Any) -> torch.Tensor:
    """One image, as numbers."""
    with torch.no_grad():
        return make_file_image(pipe, max_sequence_length=64, guidance_scale=3.0)


LAYOUTS: dict[str, Callable[[Any], dict[str, Tensors]]] = {
    "original names": lambda pipe: {"diffusion_models/chroma.safetensors": original_chroma(state_of(pipe.transformer))},
    "norms called weight": lambda pipe: {
        "diffusion_models/chroma.safetensors": {
            name.replace("norm.scale", "norm.weight"): value
            for name, value in original_chroma(state_of(pipe.transformer)).items()
        }
    },
    "diffusers' names": lambda pipe: {"diffusion_models/chroma.sft": state_of(pipe.transformer)},
    "a prefix": lambda pipe: {
        "checkpoints/chroma.safetensors": prefixed(
            "model.diffusion_model.", original_chroma(state_of(pipe.transformer))
        )
    },
}


def files_of(chroma: Any, root: Path, main: Mapping[str, Tensors]) -> Path:
    """Write ``main`` and the files beside it; returns the path of the first."""
    beside = {
        "text_encoders/t5xxl_fp16.safetensors": state_of(chroma.text_encoder),
        "vae/ae.safetensors": ldm_vae(state_of(chroma.vae)),
    }
    return [write(root / name, tensors) for name, tensors in {**main, **beside}.items()][0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_its_files_make_the_image_of_its_folder(chroma: Any, tmp_path: Path, layout: str) -> None:
    main = files_of(chroma, tmp_path, LAYOUTS[layout](chroma))
    assert read_kind(main).kind == "Chroma transformer"
    model = model_of("chroma", main, tmp_path)
    assert model.limits.negative_prompt
    assert torch.equal(file_image(build(model)), file_image(chroma))


def test_a_gguf_makes_nearly_the_image_of_its_folder(chroma: Any, tmp_path: Path) -> None:
    files_of(chroma, tmp_path, {})
    main = tmp_path / "diffusion_models" / "chroma-Q8_0.gguf"
    main.parent.mkdir()
    write_gguf(main, original_chroma(state_of(chroma.transformer)), "Q8_0")
    assert read_kind(main).kind == "Chroma transformer"
    model = model_of("chroma", main, tmp_path)
    made, expected = file_image(build(model)), file_image(chroma)
    assert 0 < (made - expected).abs().mean() < 0.02


def test_scaled_fp8_makes_nearly_the_image_of_its_folder(chroma: Any, tmp_path: Path) -> None:
    tensors = scaled_fp8(original_chroma(state_of(chroma.transformer)))
    main = files_of(chroma, tmp_path, {"diffusion_models/chroma-fp8.safetensors": tensors})
    model = model_of("chroma", main, tmp_path)
    made, expected = file_image(build(model)), file_image(chroma)
    assert 0 < (made - expected).abs().mean() < 0.05


@pytest.mark.parametrize(("own", "other"), [("chroma", "flux"), ("flux", "chroma")])
def test_its_file_is_no_flux_and_none_of_flux_is_it(chroma: Any, tmp_path: Path, own: str, other: str) -> None:
    made = chroma if own == "chroma" else ready(tiny_flux(comfyui_dir(), guidance=False))
    names = original_chroma if own == "chroma" else bfl_flux
    main = write(tmp_path / "diffusion_models" / "main.safetensors", names(state_of(made.transformer)))
    title = {"chroma": "Chroma", "flux": "FLUX"}[own]
    assert read_kind(main).kind == f"{title} transformer"
    with pytest.raises((WeightsMissing, InvalidParameter), match=f"main.safetensors is a {title} transformer"):
        complete(family_of(other), {"transformer": main}, shelf_of(tmp_path))


LORAS = {
    "its own network": ("lora_unet_distilled_guidance_layer_layers_0_in_layer.lora_down.weight", {"chroma"}),
    "blocks that both have": ("lora_unet_double_blocks_7_img_attn_qkv.lora_down.weight", {"flux", "chroma"}),
    "diffusers' names": ("transformer.transformer_blocks.7.attn.to_q.lora_A.weight", {"flux", "chroma"}),
    "a modulation, original": ("lora_unet_double_blocks_0_img_mod_lin.lora_down.weight", {"flux"}),
    "a modulation, diffusers": ("transformer.transformer_blocks.0.norm1.linear.lora_A.weight", {"flux"}),
    "a single block's modulation": ("transformer.single_transformer_blocks.0.norm.linear.lora_A.weight", {"flux"}),
    "the pooled prompt": ("transformer.time_text_embed.text_embedder.linear_1.lora_A.weight", set[str]()),
}


@pytest.mark.parametrize("form", LORAS)
def test_a_lora_is_for_the_models_that_have_its_layers(form: str) -> None:
    name, families = LORAS[form]
    found = detect_lora({name: (4, 64), "transformer.transformer_blocks.0.attn.to_k.lora_A.weight": (4, 64)})
    assert {found.family, *found.also} == (families or {"flux"})


def small_lora(names: Mapping[str, tuple[int, int]]) -> Tensors:
    """A LoRA of rank 2 under kohya's or peft's ends: (outputs, inputs) by the name of a layer."""
    generator = torch.Generator().manual_seed(1)
    found: Tensors = {}
    for name, (outputs, inputs) in names.items():
        down, up = ("lora_A", "lora_B") if "." in name else ("lora_down", "lora_up")
        found[f"{name}.{down}.weight"] = torch.randn(2, inputs, generator=generator) * 0.1
        found[f"{name}.{up}.weight"] = torch.randn(outputs, 2, generator=generator) * 0.1
    return found


LORA_FORMS = {
    "kohya": {
        "lora_unet_double_blocks_0_img_attn_qkv": (96, 32),
        "lora_unet_distilled_guidance_layer_in_proj": (32, 8),
    },
    "comfyui": {
        "diffusion_model.double_blocks.0.img_attn.qkv": (96, 32),
        "diffusion_model.distilled_guidance_layer.in_proj": (32, 8),
    },
    "diffusers": {
        "transformer.transformer_blocks.0.attn.to_q": (32, 32),
        "transformer.distilled_guidance_layer.layers.0.linear_1": (32, 32),
    },
}


@pytest.mark.parametrize("form", LORA_FORMS)
def test_a_lora_has_the_effect_of_the_summed_weights(tiny_models: dict[str, Path], tmp_path: Path, form: str) -> None:
    folder = tiny_models["tiny-chroma"]
    tensors = small_lora(LORA_FORMS[form])
    file = write(tmp_path / "some.safetensors", tensors)
    pipe = plain(folder, "fp32", ChromaPipeline)
    weights = dict(pipe.transformer.named_parameters())
    for name in LORA_FORMS[form]:
        down, up = ("lora_A", "lora_B") if "." in name else ("lora_down", "lora_up")
        delta = tensors[f"{name}.{up}.weight"] @ tensors[f"{name}.{down}.weight"]
        if "qkv" in name:
            for target, piece in zip(("to_q", "to_k", "to_v"), delta.chunk(3), strict=True):
                weights[f"transformer_blocks.0.attn.{target}.weight"].data += piece
        else:
            target = name.split(".", 1)[1] if "." in name else "distilled_guidance_layer.in_proj"
            weights[f"{target}.weight"].data += delta
    expected = image(pipe, prompts(pipe, lambda mask: mask.bool()))
    base = handle_for(folder, precision="fp32")
    before = sample_with(borrow(base), base, 2, negative=NEGATIVE, guidance=3.0)
    handle = with_loras(base, (file, 1.0, 1.0))
    made = sample_with(borrow(handle), handle, 2, negative=NEGATIVE, guidance=3.0)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(made, before, atol=1e-4)


def test_a_lora_of_another_model_is_refused_by_name(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    lora = small_lora({"lora_unet_double_blocks_0_img_mod_lin": (192, 32)})
    handle = with_loras(handle_for(tiny_models["tiny-chroma"]), (write(tmp_path / "x.safetensors", lora), 1.0, 1.0))
    with pytest.raises(InvalidParameter, match="x.safetensors was made for flux and tiny-chroma is a chroma model"):
        borrow(handle)
