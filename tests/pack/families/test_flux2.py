"""FLUX.2 klein: its image is that of plain diffusers, from its folder and from all kinds of single files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinInpaintPipeline, Flux2KleinPipeline
from neurolux.catalog.models import SingleFilesSource
from neurolux.errors import InvalidParameter, WeightsMissing
from neurolux.families.files.identify import detect_lora, identify, read_kind
from neurolux.families.registry import family_of
from neurolux.library.single_files import complete
from neurolux.loading.components import shape_of, single_components
from neurolux.weights.file_kinds import TensorInfo
from neurolux.weights.headers import WeightHeader
from PIL import Image

from tests.pack.applied import with_loras
from tests.pack.comfy_server import comfyui_dir
from tests.pack.families.parity import model_of, plain
from tests.pack.families.test_z_image import small_lora
from tests.pack.loading.test_single_files import build, ready, shelf_of
from tests.pack.pipelines import PROMPT, borrow, budget_for, handle_for, make_image, sample_with
from tests.pack.stages.test_images import encoded, redraw, some_image, some_mask
from tests.tiny_files import (
    Tensors,
    ldm_vae,
    llama_qwen3,
    prefixed,
    scaled_fp8,
    state_of,
    write,
    write_gguf,
)
from tests.tiny_files import vae as flux_vae
from tests.tiny_flux2 import bfl_klein, bfl_vae, tiny_klein, whole_state

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
NEGATIVE = "a very small dog"
GUIDANCE = 4.0


def image(pipe: Any, negative: str | None = None, **more: Any) -> torch.Tensor:
    """(1, H, W, 3) in [0, 1]."""
    call = {
        "prompt": PROMPT, "num_inference_steps": 2, "guidance_scale": 0.0, "width": 128, "height": 128,
        "output_type": "pt", "generator": torch.Generator().manual_seed(7), **more,
    }  # fmt: skip
    with torch.no_grad():
        if negative is not None:
            call["negative_prompt_embeds"], _ = pipe.encode_prompt(negative)
        return pipe(**call).images.permute(0, 2, 3, 1).float()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("offload", ["none", "stream"])
def test_its_image_is_that_of_diffusers(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, precision: str, offload: str
) -> None:
    from neurolux.memory import placement

    monkeypatch.setattr(placement, "device_budget", budget_for(0))
    folder = tiny_models["tiny-flux2-klein"]
    expected = image(plain(folder, precision, Flux2KleinPipeline))
    handle = handle_for(folder, precision=precision, offload=offload)
    assert torch.equal(sample_with(borrow(handle), handle, 2), expected)


@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_a_base_model_is_guided(tiny_models: dict[str, Path], negative: str | None) -> None:
    folder = tiny_models["tiny-flux2-klein-base"]
    expected = image(plain(folder, "fp32", Flux2KleinPipeline), negative, guidance_scale=GUIDANCE)
    handle = handle_for(folder, precision="fp32")
    made = sample_with(borrow(handle), handle, 2, negative=negative, guidance=GUIDANCE)
    assert torch.equal(made, expected)


def test_a_distilled_model_takes_no_guidance(tiny_models: dict[str, Path]) -> None:
    handle = handle_for(tiny_models["tiny-flux2-klein"])
    with pytest.raises(InvalidParameter, match="guidance_scale 4 is outside 0 to 1 of this model"):
        sample_with(borrow(handle), handle, 2, guidance=4.0)


@pytest.mark.parametrize(("precision", "size"), [("fp32", (96, 160)), ("bf16", (128, 128))])
def test_an_edited_image_is_that_of_diffusers(
    tiny_models: dict[str, Path], precision: str, size: tuple[int, int]
) -> None:
    folder = tiny_models["tiny-flux2-klein-base"]
    given = some_image(*size)
    expected = image(
        plain(folder, precision, Flux2KleinPipeline), NEGATIVE, guidance_scale=GUIDANCE, image=make_image(given),
        width=size[0], height=size[1],
    )  # fmt: skip
    made = redraw(
        folder, encoded(given), steps=2, strength=1.0, guidance=GUIDANCE, negative=NEGATIVE, precision=precision
    )
    assert torch.equal(made, expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_part_is_redrawn_as_diffusers_does(tiny_models: dict[str, Path], precision: str) -> None:
    folder = tiny_models["tiny-flux2-klein-base"]
    mask = Image.fromarray((some_mask()[0].numpy() * 255).astype("uint8"))
    expected = image(
        plain(folder, precision, Flux2KleinInpaintPipeline), NEGATIVE, guidance_scale=GUIDANCE,
        image=make_image(some_image()), mask_image=mask, strength=0.7, num_inference_steps=3,
    )  # fmt: skip
    made = redraw(
        folder, encoded(some_image(), some_mask()), steps=3, strength=0.7, guidance=GUIDANCE, negative=NEGATIVE,
        precision=precision,
    )  # fmt: skip
    assert torch.equal(made, expected)


def test_an_image_that_the_pipeline_would_shrink_is_redrawn_as_large_as_it_is(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurolux.families import registry

    family, folder = family_of("flux2"), tiny_models["tiny-flux2-klein"]
    latent = encoded(some_image(), some_mask())
    whole = redraw(folder, latent, steps=2, strength=0.5, guidance=0.0)
    monkeypatch.setitem(registry.families(), "flux2", replace(family, edit_pixels=64 * 64))
    made = redraw(folder, latent, steps=2, strength=0.5, guidance=0.0)
    assert made.shape == whole.shape
    torch.testing.assert_close(made, whole, atol=1e-3, rtol=0)


# Single files


@pytest.fixture(scope="module")
def klein() -> Any:
    """A klein with the vocabulary of the real one, as diffusers has it."""
    return ready(tiny_klein(comfyui_dir()))


def file_image(pipe: Any) -> torch.Tensor:
    """One image, as numbers."""
    return image(pipe, max_sequence_length=64, width=64, height=64)


LAYOUTS: dict[str, Callable[[Any], dict[str, Tensors]]] = {
    "BFL's": lambda pipe: {
        "diffusion_models/flux-2-klein-4b.safetensors": bfl_klein(state_of(pipe.transformer)),
        "vae/flux2-vae.safetensors": bfl_vae(whole_state(pipe.vae)),
    },
    "diffusers' names": lambda pipe: {
        "diffusion_models/klein.sft": state_of(pipe.transformer),
        "vae/klein-vae.safetensors": whole_state(pipe.vae),
    },
    "a prefix": lambda pipe: {
        "checkpoints/my-klein.safetensors": prefixed("model.diffusion_model.", bfl_klein(state_of(pipe.transformer))),
        "vae/flux2-vae.safetensors": ldm_vae(
            {name: value for name, value in whole_state(pipe.vae).items() if "num_batches" not in name}
        ),
    },
}


def files_of(klein: Any, root: Path, main: Mapping[str, Tensors]) -> Path:
    """Write ``main`` and an encoder beside it, and a VAE of FLUX.1; returns the path of the first."""
    beside = {
        "text_encoders/qwen_3_4b.safetensors": state_of(klein.text_encoder),
        "vae/ae.safetensors": ldm_vae(state_of(flux_vae(16))),
    }
    return [write(root / name, tensors) for name, tensors in {**main, **beside}.items()][0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_its_files_make_the_image_of_its_folder(klein: Any, tmp_path: Path, layout: str) -> None:
    main = files_of(klein, tmp_path, LAYOUTS[layout](klein))
    model = model_of("flux2", main, tmp_path)
    assert isinstance(model.source, SingleFilesSource)
    assert read_kind(main).kind == "FLUX.2 klein transformer"
    assert read_kind(model.source.components["vae"]).kind == "FLUX.2 VAE"
    assert read_kind(tmp_path / "vae/ae.safetensors").kind == "VAE"
    assert read_kind(tmp_path / "text_encoders/qwen_3_4b.safetensors").kind == "Qwen3 encoder"
    made = build(model)
    assert torch.equal(file_image(made), file_image(klein))
    assert len(made.text_encoder.layers) == 27


@pytest.mark.parametrize("kind", ["Q8_0", "BF16"])
def test_a_gguf_makes_nearly_the_image_of_its_folder(klein: Any, tmp_path: Path, kind: str) -> None:
    write(tmp_path / "vae/flux2-vae.safetensors", bfl_vae(whole_state(klein.vae)))
    main = tmp_path / "diffusion_models" / f"flux-2-klein-4b-{kind}.gguf"
    encoder = tmp_path / "text_encoders" / f"Qwen3-4B-{kind}.gguf"
    for path in (main, encoder):
        path.parent.mkdir()
    write_gguf(main, bfl_klein(state_of(klein.transformer)), kind, every=kind == "BF16")
    state = {name.removeprefix("model."): value for name, value in state_of(klein.text_encoder).items()}
    write_gguf(encoder, llama_qwen3(state), kind, "qwen3")
    assert read_kind(main).kind == "FLUX.2 klein transformer"
    model = model_of("flux2", main, tmp_path)
    made, expected = file_image(build(model)), file_image(klein)
    assert 0 < (made - expected).abs().mean() < 0.02
    assert isinstance(model.source, SingleFilesSource)
    planned = shape_of(single_components("flux2", model.source)["text_encoder"])
    assert (len(planned.blocks), planned.stored) == (27, "gguf")
    assert planned.stored_bytes is not None
    assert planned.stored_bytes < encoder.stat().st_size - planned.blocks[0]  # a byte a weight, or two


def test_scaled_fp8_makes_nearly_the_image_of_its_folder(klein: Any, tmp_path: Path) -> None:
    vae = LAYOUTS["BFL's"](klein)["vae/flux2-vae.safetensors"]
    tensors = scaled_fp8(bfl_klein(state_of(klein.transformer)))
    main = files_of(
        klein, tmp_path, {"diffusion_models/flux-2-klein-4b-fp8.safetensors": tensors, "vae/flux2-vae.safetensors": vae}
    )
    made, expected = file_image(build(model_of("flux2", main, tmp_path))), file_image(klein)
    assert 0 < (made - expected).abs().mean() < 0.05


def test_comfyui_previews_its_patches(klein: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod
    from neurolux.stages.preview import comfy_previewer

    monkeypatch.setattr(latent_preview.args, "preview_method", LatentPreviewMethod.Latent2RGB)
    loaded: Any = SimpleNamespace(pipe=klein, model=SimpleNamespace(family="flux2"), device=torch.device("cpu"))
    previewer = comfy_previewer(loaded)
    assert previewer is not None
    assert previewer(torch.randn(1, 128, 4, 6)).size == (12, 8)


@pytest.mark.parametrize("given", [128, 16])
def test_an_empty_latent_of_any_scale_is_of_its_size_in_pixels(given: int) -> None:
    from neurolux.stages.latent import sized_for

    side = 8 if given == 128 else 16  # of 128 pixels
    empty = {"samples": torch.zeros(1, given, side, side)}
    assert sized_for(empty, 16).shape[2:] == (8, 8)
    assert sized_for(empty, 8).shape[2:] == (16, 16)


NAMES = {
    "flux-2-klein-4b.safetensors": (4, 0.0, "Apache-2.0"),
    "flux-2-klein-4b-fp8.safetensors": (4, 0.0, "Apache-2.0"),
    "flux-2-klein-base-4b.safetensors": (50, 4.0, "Apache-2.0"),
    "flux-2-klein-9b-fp8.safetensors": (4, 0.0, "FLUX Non-Commercial License"),
    "flux-2-klein-base-9b-fp8.safetensors": (50, 4.0, "unknown"),
    "my-klein-base.safetensors": (50, 4.0, "unknown"),
    "baseball.safetensors": (4, 0.0, "unknown"),
}


@pytest.fixture(scope="module")
def chosen(klein: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a klein."""
    root = tmp_path_factory.mktemp("named")
    files_of(klein, root, {**LAYOUTS["BFL's"](klein)})
    return root


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_distilled_unless_its_name_says_base(chosen: Path, name: str) -> None:
    published = chosen / "diffusion_models/flux-2-klein-4b.safetensors"
    main = published.rename(chosen / "diffusion_models" / name)
    try:
        model = model_of("flux2", main, chosen)
    finally:
        main.rename(published)
    assert (model.defaults.num_inference_steps, model.defaults.guidance_scale, model.license) == NAMES[name]
    assert model.purpose == "draw-edit"
    assert model.limits.negative_prompt == (model.defaults.num_inference_steps == 50)


def test_a_model_that_keeps_its_references_is_refused_by_its_name(chosen: Path) -> None:
    published = chosen / "diffusion_models/flux-2-klein-4b.safetensors"
    main = published.rename(published.with_name("flux-2-klein-9b-kv.safetensors"))
    try:
        with pytest.raises(WeightsMissing, match="9b-kv.safetensors is a FLUX.2 model that keeps its reference"):
            model_of("flux2", main, chosen)
    finally:
        main.rename(published)


def test_the_encoder_of_the_other_size_is_refused_by_name(chosen: Path, klein: Any, tmp_path: Path) -> None:
    state = {name: torch.cat([value, value], -1) for name, value in state_of(klein.text_encoder).items()}
    encoder = write(tmp_path / "text_encoders/qwen_3_8b.safetensors", state)
    main = chosen / "diffusion_models/flux-2-klein-4b.safetensors"
    with pytest.raises(WeightsMissing, match="qwen_3_8b.safetensors does not belong to flux-2-klein-4b.*64 features"):
        complete(family_of("flux2"), {"transformer": main, "text_encoder": encoder}, shelf_of(chosen))


MARK = "single_stream_modulation.lin.weight"
KINDS = {
    "dev, original": ([MARK, "img_in.weight", "guidance_in.in_layer.weight"], "FLUX.2 dev transformer"),
    "dev, diffusers": (
        ["single_stream_modulation.linear.weight", "x_embedder.weight",
         "time_guidance_embed.guidance_embedder.linear_1.weight"],
        "FLUX.2 dev transformer",
    ),
    "klein": ([MARK, "img_in.weight"], "FLUX.2 klein transformer"),
    "FLUX.1's VAE": (["decoder.mid.block_1.conv1.weight"], "VAE"),
    "its VAE": (["decoder.mid.block_1.conv1.weight", "bn.running_mean"], "FLUX.2 VAE"),
    "its VAE, diffusers": (["decoder.mid_block.resnets.0.conv1.weight", "bn.running_mean"], "FLUX.2 VAE"),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("form", KINDS)
def test_every_relative_is_called_by_its_name(form: str, prefix: str) -> None:
    names, kind = KINDS[form]
    tensors = {prefix + name: TensorInfo("BF16", (4, 4, 3, 3), 288) for name in names}
    assert identify(WeightHeader(Path("x.safetensors"), tensors, {})).kind == kind


# LoRA files

LORAS = {
    "diffusers": ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight", (4, 3072), "flux2"),
    "diffusers, feed forward": ("transformer.transformer_blocks.0.ff.linear_in.lora_A.weight", (4, 3072), "flux2"),
    "a modulation": ("diffusion_model.single_stream_modulation.lin.lora_A.weight", (4, 3072), "flux2"),
    "kohya, single block of 4B": ("lora_unet_single_blocks_3_linear1.lora_up.weight", (27648, 4), "flux2"),
    "kohya, single block of FLUX.1": ("lora_unet_single_blocks_3_linear1.lora_up.weight", (21504, 4), "flux"),
    "ComfyUI, 4B": ("diffusion_model.double_blocks.0.img_mlp.0.lora_B.weight", (18432, 4), "flux2"),
    "ComfyUI, FLUX.1": ("diffusion_model.double_blocks.0.img_mlp.0.lora_B.weight", (12288, 4), "flux"),
    "linear2 of 9B": ("diffusion_model.single_blocks.0.linear2.lora_A.weight", (4, 16384), "flux2"),
    "linear2 of FLUX.1": ("diffusion_model.single_blocks.0.linear2.lora_A.weight", (4, 15360), "flux"),
    "attention of 9B": ("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", (4, 4096), "flux2"),
    "attention of 9B, diffusers": ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", (4, 4096), "flux2"),
    "attention of FLUX.1": ("diffusion_model.double_blocks.9.img_attn.qkv.lora_A.weight", (4, 3072), "flux"),
    "FLUX.1, diffusers": ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", (4, 3072), "flux"),
}


@pytest.mark.parametrize("form", LORAS)
def test_a_lora_is_recognized_by_its_layers(form: str) -> None:
    name, shape, family = LORAS[form]
    assert (detect_lora({name: shape}).family, detect_lora({name: shape}).also != ()) == (family, family == "flux")


@pytest.mark.parametrize(("block", "fits"), [(4, True), (5, False)])
def test_attention_that_both_have_is_for_both(block: int, fits: bool) -> None:
    name = f"diffusion_model.double_blocks.{block}.img_attn.qkv.lora_A.weight"
    assert ("flux2" in detect_lora({name: (4, 3072)}).also) == fits


LORA_FORMS = {
    "kohya": {
        "lora_unet_double_blocks_0_img_attn_qkv": (96, 32), "lora_unet_single_blocks_0_linear1": (288, 32),
        "lora_unet_single_stream_modulation_lin": (96, 32),
    },
    "comfyui": {
        "diffusion_model.double_blocks.0.txt_attn.proj": (32, 32), "diffusion_model.single_blocks.0.linear2": (32, 128),
        "diffusion_model.double_blocks.0.img_mlp.0": (192, 32),
        "diffusion_model.double_stream_modulation_img.lin": (192, 32),
    },
    "diffusers": {
        "transformer.transformer_blocks.0.attn.add_k_proj": (32, 32),
        "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj": (288, 32),
        "transformer.transformer_blocks.0.ff_context.linear_out": (32, 96),
    },
}  # fmt: skip
SPELLED = {
    "double_blocks.0.img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "double_blocks.0.txt_attn.proj": ("attn.to_add_out",),
    "double_blocks.0.img_mlp.0": ("ff.linear_in",),
    "single_blocks.0.linear1": ("single_transformer_blocks.0.attn.to_qkv_mlp_proj",),
    "single_blocks.0.linear2": ("single_transformer_blocks.0.attn.to_out",),
    "single_stream_modulation.lin": ("single_stream_modulation.linear",),
    "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear",),
}
SPELLED_FLAT = {name.replace(".", "_"): name for name in SPELLED}


def targets_of(layer: str) -> list[str]:
    """diffusers' names of what a layer in a LoRA file changes."""
    layer = layer.removeprefix("lora_unet_").removeprefix("diffusion_model.").removeprefix("transformer.")
    layer = SPELLED_FLAT.get(layer, layer)
    start = "transformer_blocks.0." if layer.startswith("double_blocks") else ""
    return [start + target for target in SPELLED.get(layer, (layer,))]


@pytest.mark.parametrize("form", LORA_FORMS)
def test_a_lora_has_the_effect_of_the_summed_weights(tiny_models: dict[str, Path], tmp_path: Path, form: str) -> None:
    folder = tiny_models["tiny-flux2-klein"]
    tensors = small_lora(LORA_FORMS[form])
    file = write(tmp_path / "some.safetensors", tensors)
    pipe = plain(folder, "fp32", Flux2KleinPipeline)
    weights = dict(pipe.transformer.named_parameters())
    before = image(pipe)
    for name in LORA_FORMS[form]:
        down, up = ("lora_A", "lora_B") if "." in name else ("lora_down", "lora_up")
        delta = tensors[f"{name}.{up}.weight"] @ tensors[f"{name}.{down}.weight"]
        targets = targets_of(name)
        for target, piece in zip(targets, delta.chunk(len(targets)), strict=True):
            weights[f"{target}.weight"].data += piece
    expected = image(pipe)
    handle = with_loras(handle_for(folder, precision="fp32"), (file, 1.0, 1.0))
    made = sample_with(borrow(handle), handle, 2)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(made, before, atol=1e-4)


def test_a_lora_of_the_other_flux_is_refused_by_name(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    lora = small_lora({"lora_unet_double_blocks_0_img_mod_lin": (192, 32)})
    handle = with_loras(
        handle_for(tiny_models["tiny-flux2-klein"]), (write(tmp_path / "x.safetensors", lora), 1.0, 1.0)
    )
    with pytest.raises(InvalidParameter, match="x.safetensors was made for flux and tiny-flux2-klein is a flux2 model"):
        borrow(handle)
    lora = small_lora({"lora_unet_single_stream_modulation_lin": (96, 32)})
    handle = with_loras(handle_for(tiny_models["tiny-flux-dev"]), (write(tmp_path / "y.safetensors", lora), 1.0, 1.0))
    with pytest.raises(InvalidParameter, match="y.safetensors was made for flux2 and tiny-flux-dev is a flux model"):
        borrow(handle)
