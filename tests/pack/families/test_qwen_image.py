"""Qwen-Image: its image is that of plain diffusers, from its folder and from all kinds of single files."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImageMultiControlNetModel,
    QwenImagePipeline,
)
from neurolux.catalog.reading import read_catalog
from neurolux.errors import InvalidParameter, WeightsMissing
from neurolux.families.files.identify import detect_lora, identify, read_kind
from neurolux.families.registry import family_of
from neurolux.library.single_files import complete
from neurolux.weights.file_kinds import TensorInfo
from neurolux.weights.headers import WeightHeader
from PIL import Image

from tests.pack.applied import as_pil, drawing, with_controls, with_loras
from tests.pack.comfy_server import comfyui_dir
from tests.pack.families.parity import model_of, plain
from tests.pack.loading.test_single_files import build, ready, shelf_of
from tests.pack.loading.test_single_files import make_image as make_file_image
from tests.pack.pipelines import PROMPT, borrow, budget_for, handle_for, make_image, sample_with
from tests.pack.stages.test_images import encoded, redraw, some_image, some_mask
from tests.tiny_adapters import qwen_controlnet
from tests.tiny_files import Tensors, as_type, prefixed, scaled_fp8, state_of, write, write_gguf
from tests.tiny_qwen import comfy_encoder, llama_encoder, tiny_qwen_image, wan_vae

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
NEGATIVE = "a very small dog"
GUIDANCE = 4.0


def image(pipe: Any, **more: Any) -> torch.Tensor:
    """(1, H, W, 3) in [0, 1]."""
    call = {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 2, "true_cfg_scale": GUIDANCE,
        "width": 128, "height": 128, "output_type": "pt", "generator": torch.Generator().manual_seed(7), **more,
    }  # fmt: skip
    with torch.no_grad():
        return pipe(**call).images.permute(0, 2, 3, 1).float()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("offload", ["none", "stream"])
def test_its_image_is_that_of_diffusers(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, precision: str, offload: str
) -> None:
    from neurolux.memory import placement

    monkeypatch.setattr(placement, "device_budget", budget_for(0))
    folder = tiny_models["tiny-qwen-image"]
    expected = image(plain(folder, precision, QwenImagePipeline))
    handle = handle_for(folder, precision=precision, offload=offload)
    assert torch.equal(sample_with(borrow(handle), handle, 2, negative=NEGATIVE, guidance=GUIDANCE), expected)


@pytest.mark.parametrize(
    ("negative", "guidance", "theirs"),
    [
        (None, GUIDANCE, {"negative_prompt": " "}),  # diffusers would drop the guidance without one
        ("", GUIDANCE, {"negative_prompt": " "}),
        (NEGATIVE, 1.0, {"negative_prompt": None, "true_cfg_scale": 1.0}),
        (None, 0.0, {"negative_prompt": None, "true_cfg_scale": 1.0}),
    ],
)
def test_guidance_needs_no_negative_prompt(
    tiny_models: dict[str, Path], negative: str | None, guidance: float, theirs: dict[str, Any]
) -> None:
    folder = tiny_models["tiny-qwen-image"]
    expected = image(plain(folder, "fp32", QwenImagePipeline), **theirs)
    handle = handle_for(folder, precision="fp32")
    assert torch.equal(sample_with(borrow(handle), handle, 2, negative=negative, guidance=guidance), expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", [QwenImageImg2ImgPipeline, QwenImageInpaintPipeline])
def test_an_image_made_of_an_image_is_that_of_diffusers(
    tiny_models: dict[str, Path], kind: Any, precision: str
) -> None:
    folder = tiny_models["tiny-qwen-image"]
    masked = kind is QwenImageInpaintPipeline
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


def test_what_reads_no_text_is_not_loaded(tiny_models: dict[str, Path]) -> None:
    loaded = borrow(handle_for(tiny_models["tiny-qwen-image"], precision="fp32"))
    names = [name for name, _ in loaded.pipe.components["text_encoder"].named_parameters()]
    assert names
    assert all(name.startswith("model.language_model.") for name in names)


def test_its_vae_works_in_tiles_of_the_planned_size(tiny_models: dict[str, Path]) -> None:
    from neurolux.memory.vae_tiling import tiling

    vae: Any = borrow(handle_for(tiny_models["tiny-qwen-image"], precision="fp32")).pipe.vae
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    sides = []
    original = vae.decoder.forward
    vae.decoder.forward = lambda x, *rest, **named: sides.append(x.shape[-1]) or original(x, *rest, **named)
    try:
        with torch.no_grad():
            with tiling(vae, None, 8):
                whole = vae.decode(latent).sample
            with tiling(vae, 64, 8):
                tiled = vae.decode(latent).sample
    finally:
        del vae.decoder.forward
    assert (sides[0], max(sides[1:])) == (16, 8)
    assert whole.shape == tiled.shape == (1, 3, 128, 128)
    assert (vae.use_tiling, vae.tile_sample_min_height) == (False, 256)


def test_a_preview_is_one_frame_of_a_video(monkeypatch: pytest.MonkeyPatch) -> None:
    import latent_preview
    from neurolux.stages.preview import comfy_previewer

    shown: list[tuple[int, ...]] = []
    previewer = SimpleNamespace(decode_latent_to_preview=lambda latents: shown.append(tuple(latents.shape)))
    formats: list[str] = []
    monkeypatch.setattr(
        latent_preview, "get_previewer", lambda device, kind: formats.append(type(kind).__name__) or previewer
    )
    vae = SimpleNamespace(config=SimpleNamespace(latent_channels=16))
    loaded: Any = SimpleNamespace(
        pipe=SimpleNamespace(vae=vae), model=SimpleNamespace(family="qwen-image"), device=torch.device("cpu")
    )
    show = comfy_previewer(loaded)
    assert show is not None
    show(torch.zeros(1, 16, 8, 12))
    assert (formats, shown) == (["Wan21"], [(1, 16, 1, 8, 12)])


def test_nothing_of_it_stays_when_it_goes(tiny_models: dict[str, Path]) -> None:
    from neurolux.loading.store import pipelines

    handle = handle_for(tiny_models["tiny-qwen-image"], precision="fp32")
    loaded = borrow(handle)
    sample_with(loaded, handle, 2)
    table = weakref.ref(loaded.pipe.components["transformer"].pos_embed)
    del loaded
    pipelines.clear()
    gc.collect()
    assert table() is None


def test_fp16_is_refused_because_the_model_overflows_in_it(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(InvalidParameter, match="overflows in fp16.*use bf16") as error:
        borrow(handle_for(tiny_models["tiny-qwen-image"], precision="fp16"))
    assert error.value.field == "precision"


# ControlNets


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("offload", ["none", "stream"])
def test_an_image_with_a_controlnet_is_that_of_diffusers(
    tiny_models: dict[str, Path], adapter_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, precision: str,
    offload: str,
) -> None:  # fmt: skip
    from neurolux.memory import placement

    monkeypatch.setattr(placement, "device_budget", budget_for(0))
    folder, net = tiny_models["tiny-qwen-image"], adapter_files["tiny-qwen-image-union"]
    expected = controlled(folder, net, precision, [drawing()], scale=[0.7], start=[0.0], end=[0.5])
    handle = handle_for(folder, precision=precision, offload=offload)
    before = sample_with(borrow(handle), handle, 2, negative=NEGATIVE, guidance=GUIDANCE)
    guided = with_controls(handle, {"path": net, "strength": 0.7, "end": 0.5, "mode": "canny"})
    made = sample_with(borrow(guided), guided, 2, negative=NEGATIVE, guidance=GUIDANCE)
    assert torch.equal(made, expected)
    assert not torch.equal(made, before)
    assert torch.equal(sample_with(borrow(handle), handle, 2, negative=NEGATIVE, guidance=GUIDANCE), before)


def controlled(
    folder: Path, net: Path, precision: str, images: list[torch.Tensor], **more: list[float]
) -> torch.Tensor:
    """The image of diffusers' own pipeline; of several images, with its module for several."""
    kind: Any = SimpleNamespace(from_pretrained=lambda path, **how: QwenImageControlNetPipeline.from_pretrained(
        path, controlnet=QwenImageControlNetModel.from_pretrained(net, **how), **how))  # fmt: skip
    pipe = plain(folder, precision, kind)
    names = {"scale": "controlnet_conditioning_scale", "start": "control_guidance_start", "end": "control_guidance_end"}
    arguments = {"control_image": [as_pil(one) for one in images], **{names[name]: more[name] for name in more}}
    if len(images) == 1:
        return image(pipe, **{name: values[0] for name, values in arguments.items()})
    pipe.controlnet = QwenImageMultiControlNetModel([pipe.controlnet])
    return image(pipe, **arguments)


def test_one_controlnet_follows_several_images_and_one_file_loads_as_its_folder_does(
    tiny_models: dict[str, Path], adapter_files: dict[str, Path], tmp_path: Path
) -> None:
    folder, net = tiny_models["tiny-qwen-image"], adapter_files["tiny-qwen-image-union"]
    images = [drawing(0), drawing(1)]
    expected = controlled(folder, net, "fp32", images, scale=[0.7, 0.4], start=[0.0, 0.0], end=[1.0, 0.5])
    single = tmp_path / "union.safetensors"
    single.write_bytes((net / "diffusion_pytorch_model.safetensors").read_bytes())
    handle = handle_for(folder, precision="fp32")
    for path in (net, single):
        guided = with_controls(
            handle,
            {"path": path, "image": images[0], "strength": 0.7, "mode": "canny"},
            {"path": path, "image": images[1], "strength": 0.4, "end": 0.5, "mode": "depth"},
        )
        assert torch.equal(sample_with(borrow(guided), guided, 2, negative=NEGATIVE, guidance=GUIDANCE), expected)
    mixed = with_controls(handle, {"path": net}, {"path": single})
    with pytest.raises(InvalidParameter, match="cannot act together: diffusers runs one Qwen-Image ControlNet"):
        sample_with(borrow(mixed), mixed, 2)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("inpainting", "cannot be used: it also takes a masked image"),
        ("inpainting.safetensors", "cannot be used: it also takes a masked image"),
        ("blockwise.safetensors", "cannot be used: it is one of DiffSynth's"),
        ("z-image.safetensors", "cannot be used: ControlNets of Z-Image are not supported"),
        ("flux", "was made for flux and tiny-qwen-image is a qwen-image model"),
    ],
)
def test_a_controlnet_that_does_not_fit_is_refused_by_its_name(
    tiny_models: dict[str, Path], adapter_files: dict[str, Path], tmp_path: Path, name: str, reason: str
) -> None:
    net = tmp_path / name
    if name == "flux":
        net = adapter_files["tiny-flux-union"]
    elif name.startswith("inpainting"):
        qwen_controlnet(seed=3, extra=4).save_pretrained(tmp_path / "inpainting")
        whole = tmp_path / "inpainting" / "diffusion_pytorch_model.safetensors"
        net = tmp_path / "inpainting" if name == "inpainting" else whole.rename(net)
    else:
        mark = {"blockwise": "controlnet_blocks.0.y_rms.weight", "z-image": "control_layers.0.attention.to_q.weight"}
        write(net, {mark[net.stem]: torch.ones(4)})
    with pytest.raises(InvalidParameter, match=reason):
        with_controls(handle_for(tiny_models["tiny-qwen-image"]), {"path": net})


def test_a_controlnet_keeps_no_tables_when_it_goes_and_an_image_is_not_redrawn_with_it(
    tiny_models: dict[str, Path], adapter_files: dict[str, Path]
) -> None:
    from neurolux.adapters.control.applied import ControlRun
    from neurolux.families.qwen_image import own_tables

    handle = handle_for(tiny_models["tiny-qwen-image"])
    guided = with_controls(handle, {"path": adapter_files["tiny-qwen-image-union"]})
    run = ControlRun(borrow(guided), "text-to-image")
    assert isinstance(run.pipe.controlnet.pos_embed, own_tables())
    with pytest.raises(InvalidParameter, match="Qwen-Image has no image-to-image with one; .* a model of FLUX, SDXL"):
        ControlRun(borrow(guided), "image-to-image")


def test_a_plan_counts_a_controlnet(adapter_files: dict[str, Path]) -> None:
    from neurolux.catalog.auxiliary import auxiliary_catalog
    from neurolux.families.parts.control_shapes import control_shape, published_control_shape
    from neurolux.weights.stamps import all_shapes, stamp_file

    header = all_shapes(stamp_file("union", adapter_files["tiny-qwen-image-union"]))
    shape = control_shape(header, "qwen-image")
    assert (len(shape.blocks), shape.values_per_token, shape.needs_vae) == (1, 32, True)
    assert shape.parameters == sum(math.prod(size) for size in header.values())
    entry = auxiliary_catalog().controlnets["qwen-image-union"]
    with torch.device("meta"):
        full = QwenImageControlNetModel(num_layers=5)
    published = published_control_shape(entry.download_bytes, "qwen-image")
    assert published.parameters == pytest.approx(sum(weight.numel() for weight in full.parameters()), rel=0.01)
    assert (len(published.blocks), published.values_per_token) == (5, 5 * full.inner_dim)


# Single files


@pytest.fixture(scope="module")
def qwen() -> Any:
    """A Qwen-Image with the vocabulary of the real one, as diffusers has it."""
    return ready(tiny_qwen_image(comfyui_dir()))


def file_image(pipe: Any) -> torch.Tensor:
    """One image, as numbers."""
    with torch.no_grad():
        return make_file_image(pipe, max_sequence_length=64, true_cfg_scale=1.0)


def files_of(qwen: Any, root: Path, main: Mapping[str, Tensors], **other: Tensors) -> Path:
    """Write ``main`` and the files beside it; returns the path of the first."""
    beside = {
        "text_encoders/qwen_2.5_vl_7b.safetensors": other.get("encoder") or comfy_encoder(state_of(qwen.text_encoder)),
        "vae/qwen_image_vae.safetensors": other.get("vae") or wan_vae(state_of(qwen.vae)),
    }
    return [write(root / name, tensors) for name, tensors in {**main, **beside}.items()][0]


LAYOUTS: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "its own names": ("diffusion_models/qwen_image_2512_bf16.safetensors", lambda state: state),
    "a prefix": ("checkpoints/my-qwen.safetensors", lambda state: prefixed("model.diffusion_model.", state)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_its_files_make_the_image_of_its_folder(qwen: Any, tmp_path: Path, layout: str) -> None:
    name, spelled = LAYOUTS[layout]
    own = layout == "a prefix"  # also the other names of the encoder and the VAE
    beside = {"encoder": state_of(qwen.text_encoder), "vae": state_of(qwen.vae)} if own else {}
    main = files_of(qwen, tmp_path, {name: spelled(state_of(qwen.transformer))}, **beside)
    assert read_kind(main).kind == "Qwen-Image transformer"
    assert read_kind(tmp_path / "text_encoders/qwen_2.5_vl_7b.safetensors").kind == "Qwen2.5-VL encoder"
    assert read_kind(tmp_path / "vae/qwen_image_vae.safetensors").kind == "Qwen-Image VAE"
    model = model_of("qwen-image", main, tmp_path)
    assert (model.defaults.num_inference_steps, model.defaults.guidance_scale) == (50, 4.0)
    assert torch.equal(file_image(build(model)), file_image(qwen))


FORMS: dict[str, tuple[Callable[[Tensors], Tensors], float]] = {
    "fp8": (as_type(torch.float8_e4m3fn), 0.05),
    "scaled fp8": (scaled_fp8, 0.05),
}


@pytest.mark.parametrize("form", FORMS)
def test_fewer_bits_make_nearly_the_image_of_its_folder(qwen: Any, tmp_path: Path, form: str) -> None:
    change, most = FORMS[form]
    encoder = scaled_fp8(comfy_encoder(state_of(qwen.text_encoder)))
    assert any(name.startswith("visual.") and name.endswith("scale_weight") for name in encoder)  # left out with it
    name = "diffusion_models/qwen_image_2512_fp8_e4m3fn.safetensors"
    main = files_of(qwen, tmp_path, {name: change(state_of(qwen.transformer))}, encoder=encoder)
    made, expected = file_image(build(model_of("qwen-image", main, tmp_path))), file_image(qwen)
    assert 0 < (made - expected).abs().mean() < most


def test_a_gguf_makes_nearly_the_image_of_its_folder(qwen: Any, tmp_path: Path) -> None:
    write(tmp_path / "vae/qwen_image_vae.safetensors", wan_vae(state_of(qwen.vae)))
    main = tmp_path / "diffusion_models/qwen-image-2512-Q8_0.gguf"
    encoder = tmp_path / "text_encoders/Qwen2.5-VL-7B-Instruct-Q8_0.gguf"
    for path in (main, encoder):
        path.parent.mkdir()
    write_gguf(main, state_of(qwen.transformer), "Q8_0", "qwen_image")
    write_gguf(encoder, llama_encoder(state_of(qwen.text_encoder)), "Q8_0", "qwen2vl")
    assert read_kind(main).kind == "Qwen-Image transformer"
    assert read_kind(encoder).kind == "Qwen2.5-VL encoder"
    made, expected = file_image(build(model_of("qwen-image", main, tmp_path))), file_image(qwen)
    assert 0 < (made - expected).abs().mean() < 0.02
    encoder.rename(encoder.with_name("Qwen2.5-7B-Instruct-Q8_0.gguf"))  # the same shapes, without vision
    with pytest.raises(WeightsMissing, match="no Qwen2.5-VL encoder found"):
        model_of("qwen-image", main, tmp_path)


def test_a_vae_of_wan_is_not_taken_for_its_own(qwen: Any, tmp_path: Path) -> None:
    main = files_of(qwen, tmp_path, {LAYOUTS["its own names"][0]: state_of(qwen.transformer)})
    vae = tmp_path / "vae/qwen_image_vae.safetensors"
    vae.rename(vae.with_name("wan_2.1_vae.safetensors"))
    with pytest.raises(WeightsMissing, match="no Qwen-Image VAE found: put one, such as qwen_image_vae"):
        complete(family_of("qwen-image"), {"transformer": main}, shelf_of(tmp_path))


def test_an_encoder_of_another_width_is_refused_by_name(qwen: Any, tmp_path: Path) -> None:
    state = {name: torch.cat([value, value], -1) for name, value in state_of(qwen.text_encoder).items()}
    main = files_of(
        qwen, tmp_path, {LAYOUTS["its own names"][0]: state_of(qwen.transformer)}, encoder=comfy_encoder(state)
    )
    chosen = {"transformer": main, "text_encoder": tmp_path / "text_encoders/qwen_2.5_vl_7b.safetensors"}
    with pytest.raises(WeightsMissing, match="qwen_2.5_vl_7b.safetensors does not belong to qwen_image_2512.*256 feat"):
        complete(family_of("qwen-image"), chosen, shelf_of(tmp_path))


def test_a_prompt_is_cut_with_a_warning_that_counts_what_follows_it(qwen: Any, tmp_path: Path) -> None:
    from neurolux.loading.store import load_handle
    from neurolux.stages.prompts.conditioning import told_by
    from neurolux.stages.prompts.encode import encode, prompt_of

    main = files_of(qwen, tmp_path, {LAYOUTS["its own names"][0]: state_of(qwen.transformer)})
    loaded = borrow(load_handle(model_of("qwen-image", main, tmp_path), (), precision="fp32"))
    whole, cut = encode(loaded, "a" + " a" * 506), encode(loaded, "a" + " a" * 599)
    assert told_by(whole) == []
    assert [text.partition("tokens and ")[2].partition(" reads ")[2] for text in told_by(cut)] == [
        "507: its end has no effect"
    ]
    assert (whole[0][0].shape[1], cut[0][0].shape[1]) == (512, 512)
    with torch.no_grad():
        expected, mask = qwen.encode_prompt("a" + " a" * 599, max_sequence_length=512)
    assert mask is None
    assert torch.equal(cut[0][0], expected)
    longest = whole[0][0][:, :1].repeat(1, 1024, 1)
    assert prompt_of(loaded, [[longest, {}]], "positive").embeds is longest
    with pytest.raises(InvalidParameter, match="has 1025 tokens and .* takes at most 1024"):
        prompt_of(loaded, [[longest[:, :1].repeat(1, 1025, 1), {}]], "positive")


MAIN = ["txt_norm.weight", "txt_in.weight", "img_in.weight", "transformer_blocks.0.img_mod.1.weight"]
KINDS = {
    "itself": (MAIN, (4, 4), "Qwen-Image transformer"),
    "Edit 2511": ([*MAIN, "__index_timestep_zero__"], (4, 4), "Qwen-Image-Edit-2511 transformer"),
    "Layered": ([*MAIN, "time_text_embed.addition_t_embedding.weight"], (4, 4), "Qwen-Image-Layered transformer"),
    "2.1": (["txt_in.text_norm.weight", "img_in.weight"], (4, 4), "Qwen-Image 2.1 transformer"),
    "2.1's VAE": (
        ["encoder.down_blocks.0.resnets.0.norm1.gamma", "decoder.mid_block.resnets.0.conv1.weight"],
        (4, 4, 3, 3),
        "VAE of Qwen-Image 2.1 or Wan 2.2",
    ),
    "Qwen2.5": (["model.layers.0.self_attn.q_proj.bias", "lm_head.weight"], (4, 4), "file of another kind"),
}  # fmt: skip


@pytest.mark.parametrize("form", KINDS)
def test_nothing_else_is_taken_for_it(form: str) -> None:
    names, shape, kind = KINDS[form]
    tensors = {name: TensorInfo("BF16", shape, 32) for name in names}
    found = identify(WeightHeader(Path("x.safetensors"), tensors, {}))
    assert found.kind.startswith(kind)
    assert form == "itself" or not found.parts


def test_a_model_that_edits_is_refused_by_its_name(qwen: Any, tmp_path: Path) -> None:
    main = files_of(qwen, tmp_path, {"diffusion_models/qwen_image_edit_2509.safetensors": state_of(qwen.transformer)})
    with pytest.raises(WeightsMissing, match="edit_2509.safetensors is a Qwen-Image model that edits images, which"):
        model_of("qwen-image", main, tmp_path)


# LoRA files

LORAS = {
    "diffusers": ("transformer.transformer_blocks.0.img_mlp.net.2.lora_A.weight", "qwen-image"),
    "ComfyUI": ("diffusion_model.transformer_blocks.0.txt_mod.1.lora_A.weight", "qwen-image"),
    "kohya": ("lora_unet_transformer_blocks_3_txt_mlp_net_0_proj.lora_down.weight", "qwen-image"),
    "bare": ("transformer_blocks.0.img_mod.1.lora_down.weight", "qwen-image"),
    "attention alone": ("transformer.transformer_blocks.59.attn.to_q.lora_A.weight", "qwen-image"),
    "attention that FLUX has": ("transformer.transformer_blocks.18.attn.to_q.lora_A.weight", "flux"),
    "FLUX's later blocks": ("transformer.single_transformer_blocks.37.attn.to_q.lora_A.weight", "flux"),
    "FLUX": ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "flux"),
    "Wan": ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "wan"),
}


@pytest.mark.parametrize("form", LORAS)
def test_a_lora_is_recognized_by_its_layers(form: str) -> None:
    name, family = LORAS[form]
    found = detect_lora({name: (4, 3072)})
    assert family in (found.family, *found.also)


def small_lora(form: str, names: Mapping[str, tuple[int, int]]) -> Tensors:
    """A LoRA of rank 2: (outputs, inputs) by the name of a layer; with ``alpha`` 1 under the older ends."""
    generator = torch.Generator().manual_seed(1)
    found: Tensors = {}
    down, up = ("lora_A", "lora_B") if form in ("diffusers", "comfyui") else ("lora_down", "lora_up")
    for name, (outputs, inputs) in names.items():
        spelled = LORA_FORMS[form](name)
        found[f"{spelled}.{down}.weight"] = torch.randn(2, inputs, generator=generator) * 0.2
        found[f"{spelled}.{up}.weight"] = torch.randn(outputs, 2, generator=generator) * 0.2
        if down == "lora_down":
            found[f"{spelled}.alpha"] = torch.tensor(1.0)
    return found


LAYERS = {"transformer_blocks.0.attn.to_q": (32, 32), "transformer_blocks.1.img_mlp.net.0.proj": (128, 32)}
LORA_FORMS: dict[str, Callable[[str], str]] = {
    "diffusers": lambda name: f"transformer.{name}",
    "comfyui": lambda name: f"diffusion_model.{name}",
    "kohya": lambda name: f"lora_unet_{name.replace('.', '_')}",
    "bare": lambda name: name,
}


def changed_weights(pipe: Any, form: str, tensors: Tensors) -> Any:
    """``pipe`` with the products of a LoRA added to its weights."""
    down, up, scale = ("lora_A", "lora_B", 1.0) if form in ("diffusers", "comfyui") else ("lora_down", "lora_up", 0.5)
    for name in LAYERS:
        spelled = LORA_FORMS[form](name)
        product = tensors[f"{spelled}.{up}.weight"] @ tensors[f"{spelled}.{down}.weight"]
        pipe.transformer.get_submodule(name).weight.data += product * scale
    return pipe


@pytest.mark.parametrize("form", LORA_FORMS)
def test_a_lora_has_the_effect_of_the_summed_weights(tiny_models: dict[str, Path], tmp_path: Path, form: str) -> None:
    folder = tiny_models["tiny-qwen-image"]
    tensors = small_lora(form, LAYERS)
    off = {"negative_prompt": None, "true_cfg_scale": 1.0}
    pipe = plain(folder, "fp32", QwenImagePipeline)
    before = image(pipe, **off)
    expected = image(changed_weights(pipe, form, tensors), **off)
    file = write(tmp_path / "some.safetensors", tensors)
    handle = with_loras(handle_for(folder, precision="fp32"), (file, 1.0, 1.0))
    made = sample_with(borrow(handle), handle, 2, guidance=1.0)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(made, before, atol=1e-4)


def test_a_lora_of_another_model_is_refused_by_name(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    lora = {"lora_unet_double_blocks_0_img_mod_lin.lora_down.weight": torch.zeros(2, 32)}
    handle = handle_for(tiny_models["tiny-qwen-image"])
    handle = with_loras(handle, (write(tmp_path / "x.safetensors", lora), 1.0, 1.0))
    with pytest.raises(InvalidParameter, match="x.safetensors was made for flux and tiny-qwen-image is a qwen-image"):
        borrow(handle)


# Lightning

LIGHTNING = {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}
"""As in the model card of Qwen-Image-Lightning."""
NAMES = {
    "Qwen-Image-Lightning-4steps-V2.0-bf16.safetensors": 4,
    "Qwen-Image-2512-Lightning-8steps-V1.0-bf16.safetensors": 8,
    "qwen_image_2512_lightning_4step_fp8.safetensors": 4,
    "lightning-storms-2000steps.safetensors": None,
    "qwen_image_2512_fp8_e4m3fn.safetensors": None,
}


def test_a_lightning_lora_brings_its_steps_and_its_schedule(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    from neurolux.adapters.lora.distilled import as_sampled

    folder = tiny_models["tiny-qwen-image"]
    tensors = small_lora("bare", LAYERS)
    file = write(tmp_path / "Qwen-Image-Lightning-4steps-V2.0.safetensors", tensors)
    base = handle_for(folder, precision="fp32")
    handle = with_loras(base, (file, 1.0, 1.0))
    model = as_sampled(handle.model, handle.loras)
    assert (model.defaults.num_inference_steps, model.defaults.guidance_scale) == (4, 1.0)
    assert as_sampled(base.model, base.loras) is base.model
    pipe = changed_weights(plain(folder, "fp32", QwenImagePipeline), "bare", tensors)
    call = {"negative_prompt": None, "true_cfg_scale": 1.0, "num_inference_steps": 4}
    usual = image(pipe, **call)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **LIGHTNING)
    expected = image(pipe, **call)
    loaded = borrow(handle)
    made = sample_with(loaded, handle, 4, guidance=1.0)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(made, usual, atol=1e-3)
    assert loaded.pipe.scheduler.config.shift_terminal == 0.02  # only while it samples


@pytest.mark.parametrize("name", NAMES)
def test_a_lightning_model_is_one_by_its_name(qwen: Any, tmp_path: Path, name: str) -> None:
    from neurolux.library.single_files import local_variants

    steps = NAMES[name]
    assert family_of("qwen-image").single_files.steps_of(name) == steps
    main = files_of(qwen, tmp_path, {f"diffusion_models/{name}": state_of(qwen.transformer)})
    model = model_of("qwen-image", main, tmp_path)
    wanted = (50, 4.0) if steps is None else (steps, 1.0)
    assert (model.defaults.num_inference_steps, model.defaults.guidance_scale) == wanted
    assert model.limits.negative_prompt == (steps is None)
    assert (None if model.scheduler is None else model.scheduler.config) == (None if steps is None else LIGHTNING)
    catalog = local_variants(read_catalog().get("qwen-image-2512"), shelf_of(tmp_path))
    assert bool(catalog) == ("2512" in name and steps is None)
