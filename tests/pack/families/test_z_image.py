"""Z-Image: its image is that of plain diffusers, from its folder and from all kinds of single files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImageImg2ImgPipeline, ZImageInpaintPipeline, ZImagePipeline
from neurolux.errors import InvalidParameter, WeightsMissing
from neurolux.families.files.identify import detect_lora, identify, read_kind
from neurolux.families.parts.placed import placed_class
from neurolux.families.registry import family_of
from neurolux.library.folder_models import folder_model
from neurolux.library.single_files import complete
from neurolux.weights.file_kinds import TensorInfo
from neurolux.weights.headers import WeightHeader
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
    ldm_vae,
    llama_qwen3,
    original_z_image,
    prefixed,
    scaled_fp8,
    state_of,
    tiny_z_image,
    write,
    write_gguf,
)

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
NEGATIVE = "a very small dog"
GUIDANCE = 4.0
"""As users write it: diffusers has one less."""


def image(pipe: Any, **more: Any) -> torch.Tensor:
    """(1, H, W, 3) in [0, 1]."""
    call = {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 2, "guidance_scale": GUIDANCE - 1,
        "width": 128, "height": 128, "output_type": "pt", "generator": torch.Generator().manual_seed(7), **more,
    }  # fmt: skip
    return pipe(**call).images.permute(0, 2, 3, 1).float()


@pytest.fixture(scope="module")
def turbo_folder(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with Turbo's scheduler."""
    folder = shutil.copytree(tiny_models["tiny-z-image"], tmp_path_factory.mktemp("turbo") / "tiny-turbo")
    file = folder / "scheduler/scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "shift": 3.0}))
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("offload", ["none", "stream"])
def test_its_image_is_that_of_diffusers(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, precision: str, offload: str
) -> None:
    from neurolux.memory import placement

    monkeypatch.setattr(placement, "device_budget", budget_for(0))
    folder = tiny_models["tiny-z-image"]
    expected = image(plain(folder, precision, ZImagePipeline))
    handle = handle_for(folder, precision=precision, offload=offload)
    assert torch.equal(sample_with(borrow(handle), handle, 2, negative=NEGATIVE, guidance=GUIDANCE), expected)


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_without_guidance_there_is_no_second_pass(turbo_folder: Path, guidance: float) -> None:
    expected = image(plain(turbo_folder, "fp32", ZImagePipeline), guidance_scale=0.0)
    handle = handle_for(turbo_folder, precision="fp32")
    assert torch.equal(sample_with(borrow(handle), handle, 2, guidance=guidance), expected)


def test_a_folder_is_turbo_by_its_scheduler(tiny_models: dict[str, Path], turbo_folder: Path) -> None:
    turbo, base = folder_model(turbo_folder), folder_model(tiny_models["tiny-z-image"])
    assert turbo is not None
    assert base is not None
    assert (turbo.defaults.num_inference_steps, turbo.defaults.guidance_scale) == (8, 0.0)
    assert (base.defaults.num_inference_steps, base.defaults.guidance_scale) == (50, 5.0)
    assert base.limits.negative_prompt
    assert not turbo.limits.negative_prompt
    handle = handle_for(turbo_folder)
    with pytest.raises(InvalidParameter, match="guidance_scale 4 is outside 0 to 1 of this model"):
        sample_with(borrow(handle), handle, 2, guidance=4.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", [ZImageImg2ImgPipeline, ZImageInpaintPipeline])
def test_an_image_made_of_an_image_is_that_of_diffusers(
    tiny_models: dict[str, Path], kind: Any, precision: str
) -> None:
    folder = tiny_models["tiny-z-image"]
    masked = kind is ZImageInpaintPipeline
    more: dict[str, Any] = {"image": make_image(some_image()), "strength": 0.7, "num_inference_steps": 4}
    if masked:
        more["mask_image"] = Image.fromarray((some_mask()[0].numpy() * 255).astype("uint8"))
    expected = image(plain(folder, precision, kind), **more)
    made = redraw(
        folder,
        encoded(some_image(), some_mask() if masked else None),
        steps=4, strength=0.7, guidance=GUIDANCE, negative=NEGATIVE, precision=precision,
    )  # fmt: skip
    assert torch.equal(made, expected)


def test_fp16_is_refused_because_the_model_overflows_in_it(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(InvalidParameter, match="overflows in fp16.*use bf16") as error:
        borrow(handle_for(tiny_models["tiny-z-image"], precision="fp16"))
    assert error.value.field == "precision"


def test_a_prompt_is_cut_with_a_warning_that_counts_the_template(tiny_models: dict[str, Path]) -> None:
    from neurolux.stages.prompts.conditioning import told_by
    from neurolux.stages.prompts.encode import encode

    loaded = borrow(handle_for(tiny_models["tiny-z-image"]))
    whole, cut = encode(loaded, "x" * 480), encode(loaded, "x" * 505)  # the tiny tokenizer has a token a letter
    assert told_by(whole) == []
    assert told_by(cut) == ["the prompt has 505 tokens and tiny-z-image reads 493: its end has no effect"]
    assert cut[0][0].shape[1] == 512


def test_a_prompt_without_a_position_for_each_token_is_refused(tiny_models: dict[str, Path]) -> None:
    from neurolux.stages.prompts.encode import encode, prompt_of

    loaded = borrow(handle_for(tiny_models["tiny-z-image"]))
    embeds = encode(loaded, PROMPT)[0][0]
    longest = embeds[:, :1].repeat(1, 992, 1)
    assert prompt_of(loaded, [[longest, {}]], "positive").embeds is longest
    with pytest.raises(InvalidParameter, match="has 993 tokens and tiny-z-image takes at most 992"):
        prompt_of(loaded, [[longest[:, :1].repeat(1, 993, 1), {}]], "positive")


# Single files


@pytest.fixture(scope="module")
def z_image() -> Any:
    """A Z-Image with the vocabulary of the real one, as diffusers has it."""
    return ready(tiny_z_image(comfyui_dir()))


def file_image(pipe: Any) -> torch.Tensor:
    """One image, as numbers."""
    with torch.no_grad():
        return make_file_image(pipe, max_sequence_length=64, guidance_scale=0.0)


LAYOUTS: dict[str, Callable[[Any], dict[str, Tensors]]] = {
    "ComfyUI's": lambda pipe: {
        "diffusion_models/z_image_turbo_bf16.safetensors": original_z_image(state_of(pipe.transformer))
    },
    "diffusers' names": lambda pipe: {"diffusion_models/zit.sft": state_of(pipe.transformer)},
    "a prefix": lambda pipe: {
        "checkpoints/my-turbo.safetensors": prefixed(
            "model.diffusion_model.", original_z_image(state_of(pipe.transformer))
        )
    },
}


def files_of(z_image: Any, root: Path, main: Mapping[str, Tensors]) -> Path:
    """Write ``main`` and the files beside it; returns the path of the first."""
    beside = {
        "text_encoders/qwen_3_4b.safetensors": prefixed("model.", state_of(z_image.text_encoder)),
        "vae/ae.safetensors": ldm_vae(state_of(z_image.vae)),
    }
    return [write(root / name, tensors) for name, tensors in {**main, **beside}.items()][0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_its_files_make_the_image_of_its_folder(z_image: Any, tmp_path: Path, layout: str) -> None:
    main = files_of(z_image, tmp_path, LAYOUTS[layout](z_image))
    assert read_kind(main).kind == "Z-Image transformer"
    assert read_kind(tmp_path / "text_encoders/qwen_3_4b.safetensors").kind == "Qwen3 encoder"
    assert torch.equal(file_image(build(model_of("z-image", main, tmp_path))), file_image(z_image))


@pytest.mark.parametrize(("kind", "most"), [("Q8_0", 0.02), ("BF16", 0.02)])
def test_a_gguf_makes_nearly_the_image_of_its_folder(z_image: Any, tmp_path: Path, kind: str, most: float) -> None:
    write(tmp_path / "vae/ae.safetensors", ldm_vae(state_of(z_image.vae)))
    main = tmp_path / "diffusion_models" / f"z_image_turbo-{kind}.gguf"
    encoder = tmp_path / "text_encoders" / f"Qwen3-4B-{kind}.gguf"
    for path in (main, encoder):
        path.parent.mkdir()
    write_gguf(main, original_z_image(state_of(z_image.transformer)), kind, every=kind == "BF16")
    write_gguf(encoder, llama_qwen3(state_of(z_image.text_encoder)), kind, "qwen3")
    assert read_kind(main).kind == "Z-Image transformer"
    assert read_kind(encoder).kind == "Qwen3 encoder or Qwen3-VL encoder"
    made, expected = file_image(build(model_of("z-image", main, tmp_path))), file_image(z_image)
    assert 0 < (made - expected).abs().mean() < most


def test_scaled_fp8_makes_nearly_the_image_of_its_folder(z_image: Any, tmp_path: Path) -> None:
    tensors = scaled_fp8(original_z_image(state_of(z_image.transformer)))
    main = files_of(z_image, tmp_path, {"diffusion_models/z_image_turbo_fp8.safetensors": tensors})
    made, expected = file_image(build(model_of("z-image", main, tmp_path))), file_image(z_image)
    assert 0 < (made - expected).abs().mean() < 0.05


@pytest.mark.parametrize("task", ["image-to-image", "inpaint"])
def test_latents_are_not_taken_for_pixels(z_image: Any, task: Any) -> None:
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    pipe = placed_class(family_of("z-image").pipelines[task, None])(**z_image.components)
    assert torch.equal(pipe.image_processor.preprocess(latents), latents)
    more = {"mask_image": Image.new("L", (64, 64), 255), "masked_image_latents": latents} if task == "inpaint" else {}
    with torch.no_grad():
        made = pipe(
            PROMPT, image=latents, strength=0.5, num_inference_steps=2, guidance_scale=0.0, height=64, width=64,
            output_type="latent", generator=torch.Generator().manual_seed(7), **more,
        ).images  # fmt: skip
    assert made.shape == latents.shape
    assert made.isfinite().all()


NAMES = {
    "z_image_turbo_bf16.safetensors": (8, 0.0, 3.0),
    "z-image-turbo-Q8_0.safetensors": (8, 0.0, 3.0),
    "myZIT_v2.safetensors": (50, 5.0, None),
    "beyond-zit-3.safetensors": (8, 0.0, 3.0),
    "z_image_bf16.safetensors": (50, 5.0, 6.0),
    "z-image-fp8.safetensors": (50, 5.0, 6.0),
    "my-finetune.safetensors": (50, 5.0, None),
}


@pytest.fixture(scope="module")
def chosen(z_image: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a Z-Image."""
    root = tmp_path_factory.mktemp("named")
    files_of(z_image, root, {"diffusion_models/any.safetensors": original_z_image(state_of(z_image.transformer))})
    return root


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_turbo_by_its_name(chosen: Path, name: str) -> None:
    wanted = NAMES[name]
    main = (chosen / "diffusion_models/any.safetensors").rename(chosen / "diffusion_models" / name)
    try:
        model = model_of("z-image", main, chosen)
    finally:
        main.rename(chosen / "diffusion_models/any.safetensors")
    shift = None if model.scheduler is None else model.scheduler.config["shift"]
    assert (model.defaults.num_inference_steps, model.defaults.guidance_scale, shift) == wanted
    assert (model.license == "Apache-2.0") == name.startswith("z")


def test_the_encoder_of_another_size_is_refused_by_name(z_image: Any, tmp_path: Path) -> None:
    main = files_of(z_image, tmp_path, LAYOUTS["ComfyUI's"](z_image))
    encoder = tmp_path / "text_encoders/qwen_3_8b.safetensors"
    state = {name: torch.cat([value, value], -1) for name, value in state_of(z_image.text_encoder).items()}
    write(encoder, prefixed("model.", state))
    with pytest.raises(WeightsMissing, match="qwen_3_8b.safetensors does not belong to z_image_turbo_bf16.*128 feat"):
        complete(family_of("z-image"), {"transformer": main, "text_encoder": encoder}, shelf_of(tmp_path))


Q, MODULATION = "layers.0.attention.to_q.weight", "layers.0.adaLN_modulation.0.weight"
KINDS = {
    "Lumina, original": (
        ["layers.0.attention.qkv.weight", "noise_refiner.0.adaLN_modulation.1.weight"],
        "Lumina Image 2 transformer",
    ),
    "Lumina, diffusers": (["noise_refiner.0.norm1.linear.weight"], "Lumina Image 2 transformer"),
    "Omni": ([Q, MODULATION, "cap_pad_token", "siglip_embedder.1.weight"], "Z-Image Omni transformer"),
    "its ControlNet": (["control_layers.0.adaLN_modulation.0.weight", Q, MODULATION, "cap_pad_token"], "ControlNet"),
    "Gemma 3": (
        ["model.layers.0.self_attn.q_norm.weight", "model.embed_tokens.weight",
         "model.layers.0.pre_feedforward_layernorm.weight"],
        "file of another kind",
    ),
    "Qwen3": (["layers.0.self_attn.q_norm.weight", "embed_tokens.weight"], "Qwen3 encoder"),
    "itself": ([Q, MODULATION, "cap_pad_token"], "Z-Image transformer"),
}  # fmt: skip


@pytest.mark.parametrize("form", KINDS)
def test_nothing_else_is_taken_for_it(form: str) -> None:
    names, kind = KINDS[form]
    tensors = {name: TensorInfo("BF16", (4, 4), 32) for name in names}
    assert identify(WeightHeader(Path("x.safetensors"), tensors, {})).kind.startswith(kind)


# LoRA files

LORAS = {
    "diffusers": ("transformer.layers.0.attention.to_q.lora_A.weight", (4, 3840), "z-image"),
    "ComfyUI, fused": ("diffusion_model.layers.0.attention.qkv.lora_A.weight", (4, 3840), "z-image"),
    "kohya": ("lora_unet_layers_3_feed_forward_w1.lora_down.weight", (4, 3840), "z-image"),
    "a refiner": ("diffusion_model.context_refiner.0.attention.out.lora_down.weight", (4, 3840), "z-image"),
    "Lumina": ("diffusion_model.layers.0.attention.qkv.lora_A.weight", (4, 2304), "lumina-2"),
    "FLUX": ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", (4, 3072), "flux"),
    "Wan": ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", (4, 1536), "wan"),
}


@pytest.mark.parametrize("form", LORAS)
def test_a_lora_is_recognized_by_its_layers(form: str) -> None:
    name, shape, family = LORAS[form]
    assert detect_lora({name: shape}).family == family


LORA_FORMS = {
    "kohya": {"lora_unet_layers_0_attention_to_q": (32, 32), "lora_unet_noise_refiner_0_feed_forward_w1": (85, 32)},
    "kohya, fused": {"lora_unet_layers_0_attention_qkv": (96, 32), "lora_unet_layers_1_attention_out": (32, 32)},
    "comfyui": {
        "diffusion_model.layers.0.attention.qkv": (96, 32),
        "diffusion_model.context_refiner.0.attention.out": (32, 32),
        "diffusion_model.final_layer.linear": (16, 32),
    },
    "comfyui, split": {"diffusion_model.layers.0.attention.to_q": (32, 32)},
    "diffusers": {
        "transformer.layers.0.attention.to_k": (32, 32),
        "transformer.layers.1.adaLN_modulation.0": (128, 32),
    },
}


def small_lora(names: Mapping[str, tuple[int, int]]) -> Tensors:
    """A LoRA of rank 2 under kohya's or peft's ends: (outputs, inputs) by the name of a layer."""
    generator = torch.Generator().manual_seed(1)
    found: Tensors = {}
    for name, (outputs, inputs) in names.items():
        down, up = ("lora_A", "lora_B") if "." in name else ("lora_down", "lora_up")
        found[f"{name}.{down}.weight"] = torch.randn(2, inputs, generator=generator) * 0.2
        found[f"{name}.{up}.weight"] = torch.randn(outputs, 2, generator=generator) * 0.2
    return found


SPELLED = {
    "lora_unet_layers_0_attention_to_q": "layers.0.attention.to_q",
    "lora_unet_noise_refiner_0_feed_forward_w1": "noise_refiner.0.feed_forward.w1",
    "lora_unet_layers_0_attention_qkv": "layers.0.attention.qkv",
    "lora_unet_layers_1_attention_out": "layers.1.attention.out",
}


def add(weights: dict[str, torch.nn.Parameter], layer: str, delta: torch.Tensor) -> None:
    """Add ``delta`` to a layer by its diffusers' or original name."""
    layer = SPELLED.get(layer, layer.removeprefix("diffusion_model.").removeprefix("transformer."))
    if layer.endswith("qkv"):
        for target, piece in zip(("to_q", "to_k", "to_v"), delta.chunk(3), strict=True):
            weights[f"{layer.removesuffix('qkv')}{target}.weight"].data += piece
        return
    if layer.endswith("attention.out"):
        layer = layer.removesuffix("out") + "to_out.0"
    weights[f"{layer.replace('final_layer', 'all_final_layer.2-1')}.weight"].data += delta


@pytest.mark.parametrize("form", LORA_FORMS)
def test_a_lora_has_the_effect_of_the_summed_weights(tiny_models: dict[str, Path], tmp_path: Path, form: str) -> None:
    folder = tiny_models["tiny-z-image"]
    tensors = small_lora(LORA_FORMS[form])
    file = write(tmp_path / "some.safetensors", tensors)
    pipe = plain(folder, "fp32", ZImagePipeline)
    weights = dict(pipe.transformer.named_parameters())
    before = image(pipe)
    for name in LORA_FORMS[form]:
        down, up = ("lora_A", "lora_B") if "." in name else ("lora_down", "lora_up")
        add(weights, name, tensors[f"{name}.{up}.weight"] @ tensors[f"{name}.{down}.weight"])
    expected = image(pipe)
    handle = with_loras(handle_for(folder, precision="fp32"), (file, 1.0, 1.0))
    made = sample_with(borrow(handle), handle, 2, negative=NEGATIVE, guidance=GUIDANCE)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(made, before, atol=1e-4)


def test_a_lora_of_another_model_is_refused_by_name(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    lora = small_lora({"lora_unet_double_blocks_0_img_mod_lin": (192, 32)})
    handle = with_loras(handle_for(tiny_models["tiny-z-image"]), (write(tmp_path / "x.safetensors", lora), 1.0, 1.0))
    with pytest.raises(InvalidParameter, match="x.safetensors was made for flux and tiny-z-image is a z-image model"):
        borrow(handle)
