"""LoRAs and ControlNets on a loaded pipeline, in this process: pictures as diffusers', and the base unharmed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from PIL import Image

from tests import tiny_adapters

if TYPE_CHECKING:
    from neurolux.pipelines.registry import PipelineHandle

pytestmark = pytest.mark.usefixtures("comfy_modules")
LATENT = {"samples": torch.zeros(1, 4, 16, 16)}
STEPS = 4
PROMPT = "a cat"
SAMPLED: dict[str, dict[str, Any]] = {
    "tiny-flux-dev": {"max_sequence_length": 512, "guidance_scale": 3.5},
    "tiny-sdxl": {"guidance_scale": 5.0},
}


@pytest.fixture(scope="session")
def files(base_directory: Path, tiny_models: dict[str, Path]) -> dict[str, Path]:
    """Tiny LoRAs and ControlNets, where ComfyUI finds them."""
    loras = base_directory / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    flux, sdxl = tiny_models["tiny-flux-dev"], tiny_models["tiny-sdxl"]
    written = {
        "flux-a": tiny_adapters.write_peft(loras / "flux-a.safetensors", flux, seed=1),
        "flux-b": tiny_adapters.write_peft(loras / "flux-b.safetensors", flux, seed=2, text=True),
        "flux-kohya": tiny_adapters.write_kohya_flux(loras / "flux-kohya.safetensors"),
        "flux-xlabs": tiny_adapters.write_xlabs_flux(loras / "flux-xlabs.safetensors"),
        "sdxl-a": tiny_adapters.write_peft(loras / "sdxl-a.safetensors", sdxl, seed=3),
        "sdxl-b": tiny_adapters.write_peft(loras / "sdxl-b.safetensors", sdxl, seed=4, text=True),
        "sdxl-kohya": tiny_adapters.write_kohya_sdxl(loras / "sdxl-kohya.safetensors", sdxl),
    }
    return written | tiny_adapters.write_controlnets(base_directory / "models" / "controlnet")


@pytest.fixture
def loaded_models(comfy_modules: None) -> Iterator[None]:
    """What a test loads is dropped afterwards."""
    yield
    from neurolux.pipelines.controlnet import controlnets
    from neurolux.pipelines.registry import registry

    for spec in list(registry._loaded):
        registry._drop(spec)
    controlnets.clear()


pytestmark = [pytestmark, pytest.mark.usefixtures("loaded_models")]


def handle_for(folder: Path, **choices: Any) -> PipelineHandle:
    """A loaded tiny model."""
    from neurolux.folder_models import folder_model
    from neurolux.pipelines.registry import load_handle

    model = folder_model(folder)
    assert model is not None
    return load_handle(model, (), **choices)


def picture(handle: PipelineHandle, count: int = 1) -> torch.Tensor:
    """Pictures (count, H, W, 3), made as the nodes make them."""
    from neurolux.pipelines.decode import decode
    from neurolux.pipelines.encode import encode
    from neurolux.pipelines.sample import sample

    with torch.inference_mode():  # as ComfyUI runs nodes
        loaded = handle.loaded()
        latent = {"samples": LATENT["samples"].repeat(count, 1, 1, 1)}
        return decode(loaded, sample(loaded, handle.spec, encode(loaded, PROMPT), None, latent, seed=7, steps=STEPS))


def with_loras(handle: PipelineHandle, *loras: tuple[Path, float, float]) -> PipelineHandle:
    """``handle`` with LoRAs (file, strength, strength in the text encoders)."""
    from neurolux.pipelines.adapter_files import stamp_file
    from neurolux.pipelines.adapters import AppliedLora, with_lora

    for path, strength, text_strength in loras:
        added = AppliedLora(stamp_file(path.name, path), strength, text_strength)
        handle = replace(handle, adapters=with_lora(handle.adapters, added))
    return handle


def with_controls(handle: PipelineHandle, *controls: dict[str, Any]) -> PipelineHandle:
    """``handle`` with ControlNets."""
    from neurolux.pipelines.adapter_files import stamp_file
    from neurolux.pipelines.controlnet import make_control

    for control in controls:
        values = {"strength": 1.0, "start": 0.0, "end": 1.0, "mode": "auto", "image": drawing(), **control}
        path = values.pop("path")
        added = make_control(handle.model, stamp_file(path.name, path), **values)
        handle = replace(handle, controls=(*handle.controls, added))
    return handle


def drawing(seed: int = 0, count: int = 1, height: int = 128, width: int = 128) -> torch.Tensor:
    """Random pictures of 8 bits a channel, as ComfyUI's IMAGE."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator) / 255


def as_pil(image: torch.Tensor) -> Image.Image:
    """The first of a batch."""
    return Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy())


def plain(pipe: Any, model: str, **arguments: Any) -> torch.Tensor:
    """What diffusers alone makes of it, with weights at aligned addresses (products round by that)."""
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            for name, weight in component.named_parameters():
                if "lora_" not in name:
                    weight.data = weight.data.clone()
    made = pipe(
        prompt=PROMPT, width=128, height=128, num_inference_steps=STEPS, output_type="pt",
        generator=torch.Generator().manual_seed(7), **SAMPLED[model], **arguments,
    ).images  # fmt: skip
    return made.permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("tiny-flux-dev", ["flux-a"]),
        ("tiny-flux-dev", ["flux-a", "flux-b"]),
        ("tiny-flux-dev", ["flux-kohya"]),
        ("tiny-flux-dev", ["flux-xlabs"]),
        ("tiny-sdxl", ["sdxl-a", "sdxl-b"]),
        ("tiny-sdxl", ["sdxl-kohya"]),
    ],
)
def test_picture_with_loras_equals_diffusers_and_the_base_comes_back(
    tiny_models: dict[str, Path], files: dict[str, Path], model: str, names: list[str]
) -> None:
    base = handle_for(tiny_models[model])
    before = picture(base)
    made = picture(with_loras(base, *((files[name], 0.8, 0.5) for name in names)))
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(tiny_models[model])
    for name in names:
        pipe.load_lora_weights(files[name], adapter_name=name)
    parts = pipe.get_list_adapters()
    weights = [
        {part: 0.5 if "text" in part else 0.8 for part, present in parts.items() if name in present} for name in names
    ]
    pipe.set_adapters(names, weights)
    assert torch.equal(made, plain(pipe, model))
    assert not torch.equal(made, before)
    assert torch.equal(picture(base), before)


def test_strengths_switch_without_loading_again(
    tiny_models: dict[str, Path], files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurolux.pipelines import adapters

    read: list[str] = []
    original = adapters.load_lora

    def counted(pipeline: Any, file: Any) -> Any:
        read.append(file.name)
        return original(pipeline, file)

    monkeypatch.setattr(adapters, "load_lora", counted)
    base = handle_for(tiny_models["tiny-sdxl"])
    first, second = files["sdxl-a"], files["sdxl-b"]
    denoiser = base.loaded().denoiser
    weak = picture(with_loras(base, (first, 0.3, 0.3)))
    strong = picture(with_loras(base, (first, 1.0, 1.0)))
    both = picture(with_loras(base, (first, 0.3, 0.3), (second, 0.6, 0.0)))
    assert torch.equal(both, picture(with_loras(base, (second, 0.6, 0.0), (first, 0.3, 0.3))))
    assert torch.equal(weak, picture(with_loras(base, (first, 0.3, 0.3))))
    assert torch.equal(strong, picture(with_loras(base, (first, 0.25, 0.25), (first, 0.75, 0.75))))
    assert not torch.equal(weak, strong)
    assert not torch.equal(weak, both)
    assert read == ["sdxl-a.safetensors", "sdxl-b.safetensors"]
    assert base.loaded().denoiser is denoiser


def test_loras_that_nobody_uses_leave_memory(
    tiny_models: dict[str, Path], files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurolux.pipelines import adapters
    from peft.tuners.tuners_utils import BaseTunerLayer

    monkeypatch.setattr(adapters, "MOST_UNUSED", 1)
    base = handle_for(tiny_models["tiny-flux-dev"])
    before = picture(base)
    size = sum(part.bytes for part in base.loaded().placement.memory())
    for name in ("flux-a", "flux-b"):
        picture(with_loras(base, (files[name], 1.0, 1.0)))
    loaded = base.loaded()
    assert [file.name for file in loaded.adapters.loaded] == ["flux-b.safetensors"]
    lora_bytes = sum(lora.bytes for lora in loaded.adapters.loaded.values())
    assert sum(part.bytes for part in loaded.placement.memory()) == size + lora_bytes
    assert torch.equal(picture(base), before)
    monkeypatch.setattr(adapters, "MOST_UNUSED", 0)
    picture(with_loras(base, (files["flux-a"], 1.0, 1.0)))
    assert torch.equal(picture(base), before)
    assert not any(isinstance(module, BaseTunerLayer) for module in loaded.denoiser.modules())
    assert sum(part.bytes for part in loaded.placement.memory()) == size


@pytest.mark.parametrize(
    "choices", [{"precision": "fp8"}, {"precision": "int8"}, {"offload": "stream"}, {"offload": "sequential"}]
)
def test_loras_work_on_stored_and_streamed_weights(
    tiny_models: dict[str, Path], files: dict[str, Path], choices: dict[str, str]
) -> None:
    base = handle_for(tiny_models["tiny-flux-dev"], **choices)
    before = picture(base)
    made = picture(with_loras(base, (files["flux-a"], 0.8, 0.8)))
    assert not torch.equal(made, before)
    assert torch.equal(picture(base), before)
    if "offload" in choices:
        whole = handle_for(tiny_models["tiny-flux-dev"], offload="none")
        assert torch.equal(made, picture(with_loras(whole, (files["flux-a"], 0.8, 0.8))))


def test_a_lora_that_does_not_fit_is_named_with_its_remedy(
    tiny_models: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    from neurolux.errors import InvalidParameter, WeightsMissing
    from neurolux.pipelines.adapter_files import stamp_file
    from neurolux.pipelines.adapters import check_lora
    from safetensors.torch import save_file

    base = handle_for(tiny_models["tiny-flux-dev"])
    before = picture(base)
    with pytest.raises(InvalidParameter, match="sdxl-a.safetensors was made for sdxl.*choose a LoRA for flux"):
        picture(with_loras(base, (files["sdxl-a"], 1.0, 1.0)))
    wide = tmp_path / "wide.safetensors"
    tiny_adapters.write_kohya_flux(wide, width=64)
    with pytest.raises(InvalidParameter, match="wide.safetensors does not fit tiny-flux-dev"):
        picture(with_loras(base, (wide, 1.0, 1.0)))
    none = tmp_path / "none.safetensors"
    save_file({f"transformer.nothing.lora_{kind}.weight": torch.ones(4, 4) for kind in "AB"}, none)
    with pytest.raises(InvalidParameter, match="none.safetensors"):
        picture(with_loras(base, (none, 1.0, 1.0)))
    assert torch.equal(picture(base), before)
    half = tmp_path / "half.safetensors"
    half.write_bytes(files["flux-a"].read_bytes()[:-100])
    with pytest.raises(WeightsMissing, match="half.safetensors is damaged.*fetch the file again"):
        check_lora(base.model, stamp_file(half.name, half))
    pickled = tmp_path / "old.pt"
    pickled.write_bytes(b"x")
    with pytest.raises(WeightsMissing, match="old.pt is a .pt file.*convert it"):
        check_lora(base.model, stamp_file(pickled.name, pickled))


CONTROLS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "flux": ("tiny-flux-dev", [{"name": "tiny-flux-canny", "strength": 0.7}]),
    "flux, a window": ("tiny-flux-dev", [{"name": "tiny-flux-canny", "strength": 0.7, "start": 0.25, "end": 0.75}]),
    "flux, two": (
        "tiny-flux-dev",
        [{"name": "tiny-flux-canny", "strength": 0.7, "end": 0.5}, {"name": "tiny-flux-depth", "start": 0.5}],
    ),
    "flux, a union twice": (
        "tiny-flux-dev",
        [{"name": "tiny-flux-union", "mode": "depth"}, {"name": "tiny-flux-union", "mode": "canny", "strength": 0.4}],
    ),
    "sdxl, a window": ("tiny-sdxl", [{"name": "tiny-sdxl-canny", "strength": 0.7, "start": 0.25, "end": 0.75}]),
    "sdxl, two": (
        "tiny-sdxl",
        [{"name": "tiny-sdxl-canny", "strength": 0.7}, {"name": "tiny-sdxl-depth", "strength": 0.4, "end": 0.5}],
    ),
    "sdxl, a union": ("tiny-sdxl", [{"name": "tiny-sdxl-union", "mode": "canny", "end": 0.5}]),
}
FLUX_MODES = {"canny": 0, "depth": 2}
SDXL_MODES = {"canny": 3}


@pytest.mark.parametrize("case", CONTROLS)
def test_picture_with_controlnets_equals_diffusers(
    tiny_models: dict[str, Path], files: dict[str, Path], case: str
) -> None:
    model, wanted = CONTROLS[case]
    base = handle_for(tiny_models[model])
    before = picture(base)
    images = [drawing(index) for index in range(len(wanted))]
    controls = [
        {"path": files[one["name"]], "image": image, **{key: one[key] for key in one if key != "name"}}
        for one, image in zip(wanted, images, strict=True)
    ]
    made = picture(with_controls(base, *controls))
    assert torch.equal(made, plain_controlled(tiny_models[model], files, model, wanted, images))
    assert not torch.equal(made, before)
    assert torch.equal(picture(base), before)


def plain_controlled(
    folder: Path, files: dict[str, Path], model: str, wanted: list[dict[str, Any]], images: list[torch.Tensor]
) -> torch.Tensor:
    """The picture of diffusers' own ControlNet pipelines."""
    union, flux = "mode" in wanted[0], model == "tiny-flux-dev"
    if flux:
        net_class, pipe_class = diffusers.FluxControlNetModel, diffusers.FluxControlNetPipeline
    elif union:
        net_class, pipe_class = diffusers.ControlNetUnionModel, diffusers.StableDiffusionXLControlNetUnionPipeline
    else:
        net_class, pipe_class = diffusers.ControlNetModel, diffusers.StableDiffusionXLControlNetPipeline
    nets = [net_class.from_pretrained(files[one["name"]]) for one in wanted]
    arguments: dict[str, list[Any]] = {
        "control_image" if flux or union else "image": [as_pil(image) for image in images],
        "controlnet_conditioning_scale": [one.get("strength", 1.0) for one in wanted],
        "control_guidance_start": [one.get("start", 0.0) for one in wanted],
        "control_guidance_end": [one.get("end", 1.0) for one in wanted],
    }
    if union:
        arguments["control_mode"] = [(FLUX_MODES if flux else SDXL_MODES)[one["mode"]] for one in wanted]
    if len(nets) == 1:
        pipe = pipe_class.from_pretrained(folder, controlnet=nets[0])
        return plain(pipe, model, **{name: values[0] for name, values in arguments.items()})
    several: Any = diffusers.FluxMultiControlNetModel(nets) if flux else nets
    return plain(pipe_class.from_pretrained(folder, controlnet=several), model, **arguments)


@pytest.mark.parametrize("model", ["flux", "sdxl"])
def test_one_file_loads_as_its_folder_does(
    tiny_models: dict[str, Path], files: dict[str, Path], tmp_path: Path, model: str
) -> None:
    base = handle_for(tiny_models["tiny-flux-dev" if model == "flux" else "tiny-sdxl"])
    for name in (f"tiny-{model}-canny", f"tiny-{model}-union"):
        single = tmp_path / f"{name}.safetensors"
        single.write_bytes((files[name] / "diffusion_pytorch_model.safetensors").read_bytes())
        mode = "depth" if "union" in name else "auto"
        from_folder = picture(with_controls(base, {"path": files[name], "mode": mode}))
        assert torch.equal(from_folder, picture(with_controls(base, {"path": single, "mode": mode})))


def test_a_controlnet_for_one_kind_of_picture_does_not_look_at_the_mode(
    tiny_models: dict[str, Path], files: dict[str, Path]
) -> None:
    for model, name in (("tiny-flux-dev", "tiny-flux-canny"), ("tiny-sdxl", "tiny-sdxl-canny")):
        base = handle_for(tiny_models[model])
        without = picture(with_controls(base, {"path": files[name]}))
        assert torch.equal(without, picture(with_controls(base, {"path": files[name], "mode": "depth"})))


def test_control_images_are_cut_and_go_round(tiny_models: dict[str, Path], files: dict[str, Path]) -> None:
    base = handle_for(tiny_models["tiny-sdxl"])
    image = drawing(5, count=2, height=128, width=192)
    control = {"path": files["tiny-sdxl-canny"], "image": image}
    cut = {**control, "image": image[:, :, 32:160]}
    made = picture(with_controls(base, control), count=3)
    assert torch.equal(made, picture(with_controls(base, cut), count=3))
    first = with_controls(base, {**cut, "image": cut["image"][:1]})
    assert torch.equal(made[[0, 2]], picture(first, count=3)[[0, 2]])
    assert not torch.equal(made[1], picture(first, count=3)[1])


def test_a_controlnet_that_cannot_act_says_why(
    tiny_models: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    from neurolux.errors import InvalidParameter
    from safetensors.torch import save_file

    flux, sdxl = handle_for(tiny_models["tiny-flux-dev"]), handle_for(tiny_models["tiny-sdxl"])
    with pytest.raises(InvalidParameter, match="tiny-sdxl-canny was made for sdxl.*choose a ControlNet for flux"):
        with_controls(flux, {"path": files["tiny-sdxl-canny"]})
    with pytest.raises(InvalidParameter, match="start 0.5 is not before end 0.5"):
        with_controls(flux, {"path": files["tiny-flux-canny"], "start": 0.5, "end": 0.5})
    with pytest.raises(InvalidParameter, match="tiny-flux-union serves several kinds.*canny, tile, depth"):
        picture(with_controls(flux, {"path": files["tiny-flux-union"]}))
    mixed = ({"path": files["tiny-sdxl-canny"]}, {"path": files["tiny-sdxl-union"], "mode": "depth"})
    with pytest.raises(InvalidParameter, match="cannot act together: one is a union"):
        picture(with_controls(sdxl, *mixed))
    xlabs = tmp_path / "xlabs.safetensors"
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.ones(2, 2)}, xlabs)
    with pytest.raises(InvalidParameter, match="xlabs.safetensors cannot be used.*version for diffusers"):
        with_controls(flux, {"path": xlabs})


def test_the_manager_knows_controlnets_and_an_interrupt_leaves_it_clean(
    tiny_models: dict[str, Path], files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as manager
    from neurolux.pipelines.controlnet import controlnets

    base = handle_for(tiny_models["tiny-flux-dev"])
    controlled = with_controls(base, {"path": files["tiny-flux-canny"]})
    expected = picture(controlled)
    held = {type(entry.model.model).__name__ for entry in manager.current_loaded_models}
    assert "FluxControlNetModel" in held
    (memory,) = controlnets.memory()["tiny-flux-canny"]
    assert memory["bytes"] == memory["device_bytes"] > 0
    manager.interrupt_current_processing()
    with pytest.raises(manager.InterruptProcessingException):
        picture(controlled)
    assert base.loaded().pipe.on_first_latents is None
    assert not base.loaded().placement.busy
    assert torch.equal(expected, picture(controlled))
    manager.unload_all_models()
    assert manager.current_loaded_models == []
    base.loaded()
    assert controlnets.memory() == {}
    assert torch.equal(expected, picture(controlled))


def test_lora_and_controlnet_act_together(tiny_models: dict[str, Path], files: dict[str, Path]) -> None:
    base = handle_for(tiny_models["tiny-sdxl"])
    controlled = with_controls(base, {"path": files["tiny-sdxl-canny"]})
    both = with_loras(controlled, (files["sdxl-a"], 1.0, 1.0))
    pictures = [picture(handle) for handle in (base, controlled, both, controlled, base)]
    assert torch.equal(pictures[0], pictures[4])
    assert torch.equal(pictures[1], pictures[3])
    assert not torch.equal(pictures[1], pictures[2])


def test_a_lora_changes_the_starter_and_leaves_no_trace(tmp_path: Path) -> None:
    from neurolux.catalog import PACK_FOLDER, read_catalog
    from neurolux.pipelines.registry import load_handle

    path = tiny_adapters.write_peft(tmp_path / "starter.safetensors", PACK_FOLDER / "models" / "starter", seed=5)
    base = load_handle(read_catalog().models["starter"], ())
    before = picture(base)
    changed = picture(with_loras(base, (path, 1.0, 1.0)))
    assert not torch.equal(changed, before)
    assert torch.equal(picture(base), before)
