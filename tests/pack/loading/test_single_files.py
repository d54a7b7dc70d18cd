"""Single files in every layout make the image that their diffusers folder makes; what cannot be used says why."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from neurolux.catalog.models import Model, SingleFilesSource
from neurolux.catalog.reading import read_catalog
from neurolux.errors import InvalidParameter, WeightsMissing
from neurolux.families.registry import family_of
from neurolux.library.shelf import Shelf
from neurolux.library.single_files import catalog_files, complete, files_model
from neurolux.planning.planner import make_plan
from neurolux.planning.records import Machine, Workload
from neurolux.weights.download.sources import is_here, model_status, resolve

from tests.pack.comfy_server import comfyui_dir
from tests.tiny_files import (
    Tensors,
    bfl_flux,
    clip_l,
    ldm_unet,
    ldm_vae,
    llama_t5,
    open_clip,
    prefixed,
    state_of,
    tiny_flux,
    tiny_sd15,
    tiny_sdxl,
    write,
)

pytestmark = pytest.mark.usefixtures("comfy_modules")
GB = 1_000_000_000
COMFY_FOLDERS = ("diffusion_models", "text_encoders", "vae", "checkpoints", "loras")
CALL: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 2, "output_type": "pt"}


def ready(pipe: Any) -> Any:
    """A pipeline for comparison: without dropout and progress bars."""
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe


@pytest.fixture(scope="module")
def flux() -> Any:
    """A FLUX with guidance, as diffusers has it."""
    return ready(tiny_flux(comfyui_dir(), guidance=True))


@pytest.fixture(scope="module")
def sdxl() -> Any:
    """An SDXL, as diffusers has it."""
    return ready(tiny_sdxl(comfyui_dir(), lightning=False))


def make_image(pipe: Any, **changes: Any) -> torch.Tensor:
    """One image, as numbers."""
    if hasattr(pipe, "transformer"):
        changes = {"max_sequence_length": 32, **changes}
    with torch.no_grad():
        return pipe("a red fox, naïve", generator=torch.Generator().manual_seed(7), **{**CALL, **changes}).images


def shelf_of(root: Path) -> Shelf:
    """ComfyUI's folders below ``root``."""
    return Shelf({name: (root / name,) for name in COMFY_FOLDERS})


def build(model: Model, precision: str = "fp32", steps: int = 0) -> Any:
    """The pipeline, by the pack."""
    from neurolux.loading.build import build_pipeline, shapes_of

    variant = model.variant(steps)
    files = resolve(model, variant)
    shapes = shapes_of(model, variant, files)
    machine = Machine("cpu", 0, 20 * GB, bf16=True, fp16=True)
    plan = make_plan(family_of(model.family).costs, shapes, machine, Workload(128, 128), precision)
    return build_pipeline(model, variant, files, plan)


def encoders(pipe: Any) -> dict[str, Tensors]:
    """Everything but the denoiser, in the files that are around."""
    return {
        "text_encoders/clip_l.safetensors": clip_l(state_of(pipe.text_encoder)),
        "text_encoders/t5xxl_fp16.safetensors": state_of(pipe.text_encoder_2),
        "vae/ae.safetensors": ldm_vae(state_of(pipe.vae)),
    }


def flux_checkpoint(pipe: Any) -> Tensors:
    """All of a FLUX in one file, under ComfyUI's prefixes."""
    return {
        **prefixed("model.diffusion_model.", bfl_flux(state_of(pipe.transformer))),
        **prefixed("text_encoders.clip_l.transformer.", clip_l(state_of(pipe.text_encoder))),
        "text_encoders.clip_l.logit_scale": torch.ones(()),
        **prefixed("text_encoders.t5xxl.transformer.", state_of(pipe.text_encoder_2)),
        **prefixed("vae.", ldm_vae(state_of(pipe.vae))),
    }


def sdxl_checkpoint(pipe: Any) -> Tensors:
    """All of an SDXL in one file, as Stability published it."""
    return {
        **prefixed("model.diffusion_model.", ldm_unet(state_of(pipe.unet))),
        **prefixed("first_stage_model.", ldm_vae(state_of(pipe.vae))),
        **prefixed("conditioner.embedders.0.transformer.", clip_l(state_of(pipe.text_encoder))),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77),
        **prefixed("conditioner.embedders.1.model.", open_clip(state_of(pipe.text_encoder_2))),
    }


FLUX_LAYOUTS: dict[str, Callable[[Any], dict[str, Tensors]]] = {
    "original names": lambda pipe: {
        "diffusion_models/flux.safetensors": bfl_flux(state_of(pipe.transformer)),
        **encoders(pipe),
    },
    "diffusers' names": lambda pipe: {
        "diffusion_models/flux.safetensors": state_of(pipe.transformer),
        **encoders(pipe),
        "vae/ae.safetensors": state_of(pipe.vae),
    },
    "a prefix": lambda pipe: {
        "diffusion_models/flux.sft": prefixed("model.diffusion_model.", bfl_flux(state_of(pipe.transformer))),
        **encoders(pipe),
    },
    "a checkpoint": lambda pipe: {"checkpoints/flux.safetensors": flux_checkpoint(pipe)},
}
SDXL_LAYOUTS: dict[str, Callable[[Any], dict[str, Tensors]]] = {
    "a checkpoint": lambda pipe: {"checkpoints/main.safetensors": sdxl_checkpoint(pipe)},
    "a UNet in diffusers' names": lambda pipe: {
        "diffusion_models/main.safetensors": state_of(pipe.unet),
        "checkpoints/sd_xl_base_1.0.safetensors": broken_unet(sdxl_checkpoint(pipe)),
    },
    "a UNet in original names": lambda pipe: {
        "diffusion_models/main.safetensors": prefixed("model.diffusion_model.", ldm_unet(state_of(pipe.unet))),
        "checkpoints/sd_xl_base_1.0.safetensors": broken_unet(sdxl_checkpoint(pipe)),
    },
}


def broken_unet(checkpoint: Tensors) -> Tensors:
    """The checkpoint with another UNet, which must not be taken."""
    return {name: value * 0 if "diffusion_model" in name else value for name, value in checkpoint.items()}


def put(root: Path, files: dict[str, Tensors]) -> Path:
    """Write ``files`` below ``root``; returns the first."""
    paths = [write(root / name, tensors) for name, tensors in files.items()]
    return paths[0]


@pytest.mark.parametrize("layout", FLUX_LAYOUTS)
def test_flux_files_make_the_image_of_the_folder(flux: Any, tmp_path: Path, layout: str) -> None:
    main = put(tmp_path, FLUX_LAYOUTS[layout](flux))
    model = files_model(
        family_of("flux"), complete(family_of("flux"), {"transformer": main}, shelf_of(tmp_path)), read_catalog()
    )
    assert (model.defaults.num_inference_steps, model.max_sequence_length) == (28, 512)
    assert torch.equal(make_image(build(model)), make_image(flux))


@pytest.mark.parametrize("layout", SDXL_LAYOUTS)
def test_sdxl_files_make_the_image_of_the_folder(sdxl: Any, tmp_path: Path, layout: str) -> None:
    main = put(tmp_path, SDXL_LAYOUTS[layout](sdxl))
    model = files_model(
        family_of("sdxl"), complete(family_of("sdxl"), {"unet": main}, shelf_of(tmp_path)), read_catalog()
    )
    assert model.uses_negative_prompt
    pipe = build(model)
    assert torch.equal(make_image(pipe, guidance_scale=5.0), make_image(sdxl, guidance_scale=5.0))


def test_a_folder_makes_the_same_image(flux: Any, tmp_path: Path) -> None:
    from neurolux.library.folder_models import folder_model

    flux.save_pretrained(tmp_path / "folder")
    model = folder_model(tmp_path / "folder")
    assert model is not None
    assert torch.equal(make_image(build(model)), make_image(flux))


def test_tokens_are_those_of_the_files_that_comfyui_ships(flux: Any) -> None:
    from neurolux.families import flux as flux_family
    from neurolux.families import sdxl
    from tokenizers import Tokenizer

    text = "A naïve 日本 fox 😀,  two  spaces\nand a line"
    made = flux_family.tokenizers(512)
    t5 = Tokenizer.from_file(str(comfyui_dir() / "comfy/text_encoders/t5_tokenizer/tokenizer.json"))
    assert made["tokenizer_2"](text).input_ids == t5.encode(text).ids
    ids = made["tokenizer"](text, padding="max_length", truncation=True).input_ids
    assert (len(ids), ids[0], ids[-1]) == (77, 49406, 49407)
    padded = sdxl.tokenizers(77)["tokenizer_2"]("a", padding="max_length").input_ids
    assert padded[:4] == [49406, 320, 49407, 0]


# What is found without being told


def test_a_catalog_model_is_ready_when_its_files_are_there(flux: Any, tmp_path: Path) -> None:
    schnell = ready(tiny_flux(comfyui_dir(), guidance=False))
    files = FLUX_LAYOUTS["original names"](schnell)
    files = {name.replace("flux.safetensors", "flux1-schnell.safetensors"): value for name, value in files.items()}
    put(tmp_path, files)
    catalog = catalog_files(read_catalog(), shelf_of(tmp_path))
    model = catalog.get("flux-schnell")
    assert is_here(model)
    assert model_status(model).state == "ready"
    assert (model.license, model.name) == ("Apache-2.0", "flux-schnell")
    assert not is_here(catalog.get("flux-dev"))
    arguments = {"guidance_scale": 0.0}
    assert torch.equal(make_image(build(model), **arguments), make_image(schnell, **arguments))


def test_a_part_of_a_checkpoint_counts_its_own_bytes(sdxl: Any, tmp_path: Path) -> None:
    from neurolux.loading.components import component_files

    main = put(tmp_path, {"checkpoints/all.safetensors": sdxl_checkpoint(sdxl)})
    model = files_model(
        family_of("sdxl"), complete(family_of("sdxl"), {"unet": main}, shelf_of(tmp_path)), read_catalog()
    )
    parts = component_files(model, None, resolve(model, None))
    for name in ("unet", "vae"):
        assert parts[name].bytes == sum(weight.nbytes for weight in state_of(getattr(sdxl, name)).values())


def test_lightning_files_serve_their_own_number_of_steps(sdxl: Any, tmp_path: Path) -> None:
    lightning = ready(tiny_sdxl(comfyui_dir(), lightning=True, seed=9))
    put(
        tmp_path,
        {
            "checkpoints/sd_xl_base_1.0.safetensors": sdxl_checkpoint(sdxl),
            "checkpoints/sdxl_lightning_4step.safetensors": sdxl_checkpoint(lightning),
            "diffusion_models/sdxl_lightning_8step_unet.safetensors": state_of(lightning.unet),
        },
    )
    model = catalog_files(read_catalog(), shelf_of(tmp_path)).get("sdxl-lightning")
    assert set(model.local) == {4, 8}
    four, eight = build(model, steps=4), build(model, steps=8)
    arguments = {"guidance_scale": 0.0, "num_inference_steps": 4}
    assert torch.equal(make_image(four, **arguments), make_image(lightning, **arguments))
    assert torch.equal(eight.unet.state_dict()["conv_in.weight"], lightning.unet.state_dict()["conv_in.weight"])
    assert torch.equal(eight.vae.state_dict()["quant_conv.weight"], sdxl.vae.state_dict()["quant_conv.weight"])
    assert eight.scheduler.config.timestep_spacing == "trailing"
    assert not model.shares_components  # their text encoders and VAEs may differ, so none stands in for another
    assert read_catalog().models["sdxl-lightning"].shares_components


def test_a_lightning_lora_makes_the_model_of_the_base(sdxl: Any, tmp_path: Path) -> None:
    names = [name for name in state_of(sdxl.unet) if name.endswith(("to_q.weight", "to_v.weight", "ff.net.2.weight"))]
    lora: Tensors = {}
    for name in names:
        rows, columns = sdxl.unet.get_parameter(name).shape
        stem = "unet." + name.removesuffix(".weight")
        lora[f"{stem}.lora_A.weight"] = torch.randn(4, columns) * 0.1
        lora[f"{stem}.lora_B.weight"] = torch.randn(rows, 4) * 0.1
    put(
        tmp_path,
        {
            "checkpoints/sd_xl_base_1.0.safetensors": sdxl_checkpoint(sdxl),
            "loras/sdxl_lightning_2step_lora.safetensors": lora,
        },
    )
    model = catalog_files(read_catalog(), shelf_of(tmp_path)).get("sdxl-lightning")
    assert set(model.local) == {2}
    pipe = build(model, steps=2)
    expected = ready(tiny_sdxl(comfyui_dir(), lightning=True))
    expected.load_lora_weights(dict(lora))
    expected.fuse_lora()
    expected.unload_lora_weights()
    assert not torch.equal(pipe.unet.get_parameter(names[0]), sdxl.unet.get_parameter(names[0]))
    assert torch.equal(make_image(pipe, guidance_scale=0.0), make_image(expected, guidance_scale=0.0))


def test_a_name_with_steps_is_a_distilled_model(sdxl: Any, tmp_path: Path) -> None:
    main = put(tmp_path, {"checkpoints/mineXL_Lightning_4-steps.safetensors": sdxl_checkpoint(sdxl)})
    model = files_model(
        family_of("sdxl"), complete(family_of("sdxl"), {"unet": main}, shelf_of(tmp_path)), read_catalog()
    )
    assert model.limits.num_inference_steps.choices == (4,)
    assert model.defaults.guidance_scale == 0.0
    with pytest.raises(InvalidParameter, match="this model has 4"):
        model.variant(8)


def test_of_several_files_the_one_that_fits_is_taken(flux: Any, sdxl: Any, tmp_path: Path) -> None:
    files = FLUX_LAYOUTS["original names"](flux)
    wide = tiny_flux(comfyui_dir(), guidance=False)
    other = torch.nn.functional.pad  # a T5 of another width
    t5 = {name: other(value, (0, 8)) if value.shape[-1] == 64 else value for name, value in encoders(wide)[
        "text_encoders/t5xxl_fp16.safetensors"].items()}  # fmt: skip
    main = put(tmp_path, {**files, "text_encoders/a_t5xxl.safetensors": t5, "vae/0.safetensors": state_of(sdxl.vae)})
    source = complete(family_of("flux"), {"transformer": main}, shelf_of(tmp_path))
    assert source.components["text_encoder_2"].name == "t5xxl_fp16.safetensors"
    assert source.components["vae"].name == "ae.safetensors"


# What cannot be used


def test_a_missing_encoder_says_where_to_put_it(flux: Any, tmp_path: Path) -> None:
    main = put(tmp_path, FLUX_LAYOUTS["original names"](flux))
    (tmp_path / "text_encoders" / "t5xxl_fp16.safetensors").unlink()
    (tmp_path / "vae" / "ae.safetensors").unlink()
    with pytest.raises(WeightsMissing) as error:
        complete(family_of("flux"), {"transformer": main}, shelf_of(tmp_path))
    assert str(error.value) == (
        "no T5 encoder found: put one, such as t5xxl_fp16.safetensors, into ComfyUI's models/text_encoders; "
        "no VAE found: put one, such as ae.safetensors, into ComfyUI's models/vae"
    )


def test_files_of_another_model_say_so(flux: Any, sdxl: Any, tmp_path: Path) -> None:
    main = put(tmp_path, FLUX_LAYOUTS["original names"](flux))
    vae = write(tmp_path / "vae" / "sdxl_vae.safetensors", ldm_vae(state_of(sdxl.vae)))
    with pytest.raises(WeightsMissing, match=r"sdxl_vae.safetensors does not belong to flux.safetensors: it has 4 la"):
        complete(family_of("flux"), {"transformer": main, "vae": vae}, shelf_of(tmp_path))
    checkpoint = write(tmp_path / "checkpoints" / "xl.safetensors", sdxl_checkpoint(sdxl))
    with pytest.raises(
        WeightsMissing, match=r"xl.safetensors is a SDXL checkpoint; transformer needs a FLUX transform"
    ):
        complete(family_of("flux"), {"transformer": checkpoint}, shelf_of(tmp_path))


@pytest.mark.parametrize("named", [lambda state: state, llama_t5], ids=["transformers", "llama.cpp"])
def test_umt5_is_not_taken_for_t5(flux: Any, tmp_path: Path, named: Callable[[Any], Any]) -> None:
    """It has T5's names and widths; only the bias in each block tells them apart."""
    main = put(tmp_path, FLUX_LAYOUTS["original names"](flux))
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    state = state_of(flux.text_encoder_2)
    own = named({**state, bias.format(1): state[bias.format(0)].clone()})
    umt5 = write(tmp_path / "text_encoders" / "umt5_xxl_fp16.safetensors", own)
    with pytest.raises(WeightsMissing, match=r"umt5_xxl_fp16.safetensors is a UMT5 encoder, which other models"):
        complete(family_of("flux"), {"transformer": main, "text_encoder_2": umt5}, shelf_of(tmp_path))
    assert complete(family_of("flux"), {"transformer": main}, shelf_of(tmp_path)).components["text_encoder_2"] != umt5


def test_a_control_model_is_not_taken_for_text_to_image(flux: Any, tmp_path: Path) -> None:
    state = bfl_flux(state_of(flux.transformer))
    state["img_in.weight"] = torch.zeros(256, 128)
    main = put(tmp_path, {"diffusion_models/flux1-canny-dev.safetensors": state, **encoders(flux)})
    with pytest.raises(WeightsMissing, match=r"flux1-canny-dev.safetensors takes 128 channels and returns 64"):
        complete(family_of("flux"), {"transformer": main}, shelf_of(tmp_path))


@pytest.mark.parametrize(("name", "model"), [("flux1-fill-dev", "flux-fill-dev"), ("flux1-dev", None), ("mine", None)])
def test_a_model_that_fills_is_one_whatever_its_file_is_called(
    flux: Any, tmp_path: Path, name: str, model: str | None
) -> None:
    state = bfl_flux(state_of(flux.transformer))
    state["img_in.weight"] = torch.zeros(256, 384)
    main = put(tmp_path, {f"diffusion_models/{name}.safetensors": state, **encoders(flux)})
    source = complete(family_of("flux"), {"transformer": main}, shelf_of(tmp_path))
    chosen = files_model(family_of("flux"), source, read_catalog())
    assert (chosen.purpose, chosen.defaults.guidance_scale) == ("fill", 30.0)
    assert build(chosen).transformer.config.in_channels == 384
    local = catalog_files(read_catalog(), shelf_of(tmp_path)).models.values()
    assert [known.name for known in local if known.local] == ([model] if model else [])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda data: data[:-100],
            r"is damaged or incomplete \(it has \d+ bytes and should have \d+\); fetch the file",
        ),
        (lambda data: b"<html>" * 100, "it does not begin as a safetensors file does"),
        (lambda data: b"", "it does not begin as a safetensors file does"),
    ],
)
def test_a_damaged_file_says_so(flux: Any, tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    main = put(tmp_path, FLUX_LAYOUTS["original names"](flux))
    main.write_bytes(damage(main.read_bytes()))
    with pytest.raises(WeightsMissing, match=message):
        complete(family_of("flux"), {"transformer": main}, shelf_of(tmp_path))
    model = files_model_of(tmp_path)
    with pytest.raises(WeightsMissing, match="flux.safetensors"):
        build(model)


def files_model_of(root: Path) -> Model:
    """A FLUX of the files in ``root``, whatever is in them."""
    source = SingleFilesSource(
        {
            "transformer": root / "diffusion_models/flux.safetensors",
            "text_encoder": root / "text_encoders/clip_l.safetensors",
            "text_encoder_2": root / "text_encoders/t5xxl_fp16.safetensors",
            "vae": root / "vae/ae.safetensors",
        }
    )
    return replace(read_catalog().get("flux-dev"), name="mine", source=source)


def test_a_file_that_lacks_weights_says_which(flux: Any, tmp_path: Path) -> None:
    files = FLUX_LAYOUTS["original names"](flux)
    del files["diffusion_models/flux.safetensors"]["double_blocks.1.img_mlp.2.bias"]
    put(tmp_path, files)
    with pytest.raises(WeightsMissing, match=r"flux.safetensors lacks transformer_blocks.1.ff.net.2.bias; fetch the"):
        build(files_model_of(tmp_path))


def test_a_pickled_file_is_not_opened(flux: Any, tmp_path: Path) -> None:
    put(tmp_path, FLUX_LAYOUTS["original names"](flux))
    pickled = tmp_path / "vae" / "ae.ckpt"
    shutil.move(tmp_path / "vae" / "ae.safetensors", pickled)
    with pytest.raises(WeightsMissing, match=r"ae.ckpt is a pickled file.*use a safetensors or GGUF version"):
        complete(
            family_of("flux"),
            {"transformer": tmp_path / "diffusion_models/flux.safetensors", "vae": pickled},
            shelf_of(tmp_path),
        )


# Stable Diffusion 1.5


@pytest.fixture(scope="module")
def sd15() -> Any:
    """A Stable Diffusion 1.5, as diffusers has it."""
    return ready(tiny_sd15(comfyui_dir()))


def sd15_checkpoint(pipe: Any) -> Tensors:
    """All of it in one file, as Runway published it, with the weights' averages beside them."""
    unet = ldm_unet(state_of(pipe.unet))
    return {
        **prefixed("model.diffusion_model.", unet),
        **{f"model_ema.diffusion_model{name.replace('.', '')}": value * 0 for name, value in unet.items()},
        **prefixed("first_stage_model.", ldm_vae(state_of(pipe.vae))),
        **prefixed("cond_stage_model.transformer.", clip_l(state_of(pipe.text_encoder))),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }


SD15_LAYOUTS: dict[str, Callable[[Any], dict[str, Tensors]]] = {
    "a checkpoint": lambda pipe: {"checkpoints/v1-5-pruned-emaonly-fp16.safetensors": sd15_checkpoint(pipe)},
    "a checkpoint of one's own": lambda pipe: {"checkpoints/mine.safetensors": sd15_checkpoint(pipe)},
    "a UNet, an encoder and a VAE": lambda pipe: {
        "diffusion_models/sd15_unet.safetensors": state_of(pipe.unet),
        "text_encoders/clip_l.safetensors": clip_l(state_of(pipe.text_encoder)),
        "vae/vae-ft-mse-840000-ema-pruned.safetensors": ldm_vae(state_of(pipe.vae)),
        "vae/sdxl_vae.safetensors": {name: value * 0 for name, value in ldm_vae(state_of(pipe.vae)).items()},
    },
}


@pytest.mark.parametrize("layout", SD15_LAYOUTS)
def test_sd15_files_make_the_image_of_the_folder(sd15: Any, tmp_path: Path, layout: str) -> None:
    main = put(tmp_path, SD15_LAYOUTS[layout](sd15))
    model = files_model(
        family_of("sd15"), complete(family_of("sd15"), {"unet": main}, shelf_of(tmp_path)), read_catalog()
    )
    assert model.uses_negative_prompt
    assert (model.defaults.guidance_scale, model.defaults.width) == (7.5, 512)
    assert torch.equal(make_image(build(model), guidance_scale=5.0), make_image(sd15, guidance_scale=5.0))
    local = catalog_files(read_catalog(), shelf_of(tmp_path)).get("sd15").local
    assert bool(local) == (layout != "a checkpoint of one's own")


def test_relatives_of_sd15_are_refused_by_their_names(sd15: Any, tmp_path: Path) -> None:
    checkpoint = sd15_checkpoint(sd15)
    crossed = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    two = write(tmp_path / "checkpoints" / "v2.safetensors", {**checkpoint, crossed: torch.zeros(64, 1024)})
    with pytest.raises(WeightsMissing, match=r"v2.safetensors is a Stable Diffusion 2 UNet"):
        complete(family_of("sd15"), {"unet": two}, shelf_of(tmp_path))
    first = "model.diffusion_model.input_blocks.0.0.weight"
    inpainting = write(tmp_path / "checkpoints" / "ip.safetensors", {**checkpoint, first: torch.zeros(64, 9, 3, 3)})
    with pytest.raises(WeightsMissing, match=r"ip.safetensors takes 9 channels and returns 4: it is an inpainting"):
        complete(family_of("sd15"), {"unet": inpainting}, shelf_of(tmp_path))
    snr = write(tmp_path / "checkpoints" / "snr.safetensors", {**checkpoint, "ztsnr": torch.zeros(0)})
    with pytest.raises(WeightsMissing, match=r"snr.safetensors .* zero terminal SNR"):
        complete(family_of("sd15"), {"unet": snr}, shelf_of(tmp_path))
    velocity = write(tmp_path / "checkpoints" / "v.safetensors", {**checkpoint, "v_pred": torch.zeros(0)})
    source = complete(family_of("sd15"), {"unet": velocity}, shelf_of(tmp_path))
    scheduler = build(files_model(family_of("sd15"), source, read_catalog())).scheduler
    assert scheduler.config.prediction_type == "v_prediction"
