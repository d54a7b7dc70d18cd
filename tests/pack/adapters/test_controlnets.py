"""ControlNets on a loaded pipeline, in this process: images as diffusers', and the base unharmed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests.pack.applied import as_pil, drawing, make_image, plain, with_controls
from tests.pack.pipelines import borrow, handle_for

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
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
def test_image_with_controlnets_equals_diffusers(
    tiny_models: dict[str, Path], adapter_files: dict[str, Path], case: str
) -> None:
    model, wanted = CONTROLS[case]
    base = handle_for(tiny_models[model])
    before = make_image(base)
    images = [drawing(index) for index in range(len(wanted))]
    controls = [
        {"path": adapter_files[one["name"]], "image": image, **{key: one[key] for key in one if key != "name"}}
        for one, image in zip(wanted, images, strict=True)
    ]
    made = make_image(with_controls(base, *controls))
    assert torch.equal(made, plain_controlled(tiny_models[model], adapter_files, model, wanted, images))
    assert not torch.equal(made, before)
    assert torch.equal(make_image(base), before)


def plain_controlled(
    folder: Path, adapter_files: dict[str, Path], model: str, wanted: list[dict[str, Any]], images: list[torch.Tensor]
) -> torch.Tensor:
    """The image of diffusers' own ControlNet pipelines."""
    union, flux = "mode" in wanted[0], model == "tiny-flux-dev"
    if flux:
        net_class, pipe_class = diffusers.FluxControlNetModel, diffusers.FluxControlNetPipeline
    elif union:
        net_class, pipe_class = diffusers.ControlNetUnionModel, diffusers.StableDiffusionXLControlNetUnionPipeline
    else:
        net_class, pipe_class = diffusers.ControlNetModel, diffusers.StableDiffusionXLControlNetPipeline
    nets = [net_class.from_pretrained(adapter_files[one["name"]]) for one in wanted]
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
    tiny_models: dict[str, Path], adapter_files: dict[str, Path], tmp_path: Path, model: str
) -> None:
    base = handle_for(tiny_models["tiny-flux-dev" if model == "flux" else "tiny-sdxl"])
    for name in (f"tiny-{model}-canny", f"tiny-{model}-union"):
        single = tmp_path / f"{name}.safetensors"
        single.write_bytes((adapter_files[name] / "diffusion_pytorch_model.safetensors").read_bytes())
        mode = "depth" if "union" in name else "auto"
        from_folder = make_image(with_controls(base, {"path": adapter_files[name], "mode": mode}))
        assert torch.equal(from_folder, make_image(with_controls(base, {"path": single, "mode": mode})))


def test_a_controlnet_for_one_kind_of_image_does_not_look_at_the_mode(
    tiny_models: dict[str, Path], adapter_files: dict[str, Path]
) -> None:
    for model, name in (("tiny-flux-dev", "tiny-flux-canny"), ("tiny-sdxl", "tiny-sdxl-canny")):
        base = handle_for(tiny_models[model])
        without = make_image(with_controls(base, {"path": adapter_files[name]}))
        assert torch.equal(without, make_image(with_controls(base, {"path": adapter_files[name], "mode": "depth"})))


def test_control_images_are_cut_and_go_round(tiny_models: dict[str, Path], adapter_files: dict[str, Path]) -> None:
    base = handle_for(tiny_models["tiny-sdxl"])
    image = drawing(5, count=2, height=128, width=192)
    control = {"path": adapter_files["tiny-sdxl-canny"], "image": image}
    cut = {**control, "image": image[:, :, 32:160]}
    made = make_image(with_controls(base, control), count=3)
    assert torch.equal(made, make_image(with_controls(base, cut), count=3))
    first = with_controls(base, {**cut, "image": cut["image"][:1]})
    assert torch.equal(made[[0, 2]], make_image(first, count=3)[[0, 2]])
    assert not torch.equal(made[1], make_image(first, count=3)[1])


def test_a_controlnet_that_cannot_act_says_why(
    tiny_models: dict[str, Path], adapter_files: dict[str, Path], tmp_path: Path
) -> None:
    from neurolux.errors import InvalidParameter
    from safetensors.torch import save_file

    flux, sdxl = handle_for(tiny_models["tiny-flux-dev"]), handle_for(tiny_models["tiny-sdxl"])
    with pytest.raises(InvalidParameter, match="tiny-sdxl-canny was made for sdxl.*choose a ControlNet for flux"):
        with_controls(flux, {"path": adapter_files["tiny-sdxl-canny"]})
    with pytest.raises(InvalidParameter, match="start 0.5 is not before end 0.5"):
        with_controls(flux, {"path": adapter_files["tiny-flux-canny"], "start": 0.5, "end": 0.5})
    with pytest.raises(InvalidParameter, match="tiny-flux-union serves several kinds.*canny, tile, depth"):
        make_image(with_controls(flux, {"path": adapter_files["tiny-flux-union"]}))
    with pytest.raises(InvalidParameter, match="tiny-flux-union serves several kinds.*canny, tile, depth"):
        make_image(with_controls(flux, {"path": adapter_files["tiny-flux-union"], "mode": "soft edge"}))
    with pytest.raises(InvalidParameter, match="mode 'normal' is not one of a flux ControlNet"):
        with_controls(flux, {"path": adapter_files["tiny-flux-union"], "mode": "normal"})
    mixed = ({"path": adapter_files["tiny-sdxl-canny"]}, {"path": adapter_files["tiny-sdxl-union"], "mode": "depth"})
    with pytest.raises(InvalidParameter, match="cannot act together: one is a union"):
        make_image(with_controls(sdxl, *mixed))
    xlabs = tmp_path / "xlabs.safetensors"
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.ones(2, 2)}, xlabs)
    with pytest.raises(InvalidParameter, match="xlabs.safetensors cannot be used.*version for diffusers"):
        with_controls(flux, {"path": xlabs})


def test_the_manager_knows_controlnets_and_an_interrupt_leaves_it_clean(
    tiny_models: dict[str, Path], adapter_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as manager
    from neurolux.memory.module_store import modules

    base = handle_for(tiny_models["tiny-flux-dev"])
    controlled = with_controls(base, {"path": adapter_files["tiny-flux-canny"]})
    expected = make_image(controlled)
    held = {type(entry.model.model).__name__ for entry in manager.current_loaded_models}
    assert "FluxControlNetModel" in held
    (memory,) = modules.memory("controlnet")["tiny-flux-canny"]
    assert memory.bytes == memory.device_bytes > 0
    manager.interrupt_current_processing()
    with pytest.raises(manager.InterruptProcessingException):
        make_image(controlled)
    assert borrow(base).pipe.on_first_latents is None
    assert not borrow(base).placement.busy
    assert torch.equal(expected, make_image(controlled))
    manager.unload_all_models()
    assert manager.current_loaded_models == []
    borrow(base)
    assert modules.memory("controlnet") == {}
    assert torch.equal(expected, make_image(controlled))
