"""LoRAs on a loaded pipeline, in this process: images as diffusers', and the base unharmed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests import tiny_adapters
from tests.pack.applied import make_image, plain, with_controls, with_loras
from tests.pack.pipelines import borrow, handle_for

STARTER = Path(__file__).parents[3] / "custom_nodes" / "neurolux" / "models" / "starter"
pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")


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
def test_image_with_loras_equals_diffusers_and_the_base_comes_back(
    tiny_models: dict[str, Path], adapter_files: dict[str, Path], model: str, names: list[str]
) -> None:
    base = handle_for(tiny_models[model])
    before = make_image(base)
    made = make_image(with_loras(base, *((adapter_files[name], 0.8, 0.5) for name in names)))
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(tiny_models[model])
    for name in names:
        pipe.load_lora_weights(adapter_files[name], adapter_name=name)
    parts = pipe.get_list_adapters()
    weights = [
        {part: 0.5 if "text" in part else 0.8 for part, present in parts.items() if name in present} for name in names
    ]
    pipe.set_adapters(names, weights)
    assert torch.equal(made, plain(pipe, model))
    assert not torch.equal(made, before)
    assert torch.equal(make_image(base), before)


def test_strengths_switch_without_loading_again(
    tiny_models: dict[str, Path], adapter_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurolux.adapters.lora import applied as adapters

    read: list[str] = []
    original = adapters.load_lora

    def counted(pipeline: Any, file: Any) -> Any:
        read.append(file.name)
        return original(pipeline, file)

    monkeypatch.setattr(adapters, "load_lora", counted)
    base = handle_for(tiny_models["tiny-sdxl"])
    first, second = adapter_files["sdxl-a"], adapter_files["sdxl-b"]
    denoiser = borrow(base).denoiser
    weak = make_image(with_loras(base, (first, 0.3, 0.3)))
    strong = make_image(with_loras(base, (first, 1.0, 1.0)))
    both = make_image(with_loras(base, (first, 0.3, 0.3), (second, 0.6, 0.0)))
    assert torch.equal(both, make_image(with_loras(base, (second, 0.6, 0.0), (first, 0.3, 0.3))))
    assert torch.equal(weak, make_image(with_loras(base, (first, 0.3, 0.3))))
    assert torch.equal(strong, make_image(with_loras(base, (first, 0.25, 0.25), (first, 0.75, 0.75))))
    assert not torch.equal(weak, strong)
    assert not torch.equal(weak, both)
    assert read == ["sdxl-a.safetensors", "sdxl-b.safetensors"]
    assert borrow(base).denoiser is denoiser


def test_loras_that_nobody_uses_leave_memory(
    tiny_models: dict[str, Path], adapter_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurolux.adapters.lora import applied as adapters
    from peft.tuners.tuners_utils import BaseTunerLayer

    monkeypatch.setattr(adapters, "MOST_UNUSED", 1)
    base = handle_for(tiny_models["tiny-flux-dev"])
    before = make_image(base)
    size = sum(part.bytes for part in borrow(base).placement.memory())
    for name in ("flux-a", "flux-b"):
        make_image(with_loras(base, (adapter_files[name], 1.0, 1.0)))
    loaded = borrow(base)
    assert [file.name for file in loaded.loras.loaded] == ["flux-b.safetensors"]
    lora_bytes = sum(lora.bytes for lora in loaded.loras.loaded.values())
    assert sum(part.bytes for part in loaded.placement.memory()) == size + lora_bytes
    assert torch.equal(make_image(base), before)
    monkeypatch.setattr(adapters, "MOST_UNUSED", 0)
    make_image(with_loras(base, (adapter_files["flux-a"], 1.0, 1.0)))
    assert torch.equal(make_image(base), before)
    assert not any(isinstance(module, BaseTunerLayer) for module in loaded.denoiser.modules())
    assert sum(part.bytes for part in loaded.placement.memory()) == size


@pytest.mark.parametrize(
    "choices", [{"precision": "fp8"}, {"precision": "int8"}, {"offload": "stream"}, {"offload": "sequential"}]
)
def test_loras_work_on_stored_and_streamed_weights(
    tiny_models: dict[str, Path], adapter_files: dict[str, Path], choices: dict[str, str]
) -> None:
    base = handle_for(tiny_models["tiny-flux-dev"], **choices)
    before = make_image(base)
    made = make_image(with_loras(base, (adapter_files["flux-a"], 0.8, 0.8)))
    assert not torch.equal(made, before)
    assert torch.equal(make_image(base), before)
    if "offload" in choices:
        whole = handle_for(tiny_models["tiny-flux-dev"], offload="none")
        assert torch.equal(made, make_image(with_loras(whole, (adapter_files["flux-a"], 0.8, 0.8))))


def test_a_lora_that_does_not_fit_is_named_with_its_remedy(
    tiny_models: dict[str, Path], adapter_files: dict[str, Path], tmp_path: Path
) -> None:
    from neurolux.adapters.lora.applied import check_lora
    from neurolux.errors import InvalidParameter, WeightsMissing
    from neurolux.weights.stamps import stamp_file
    from safetensors.torch import save_file

    base = handle_for(tiny_models["tiny-flux-dev"])
    before = make_image(base)
    with pytest.raises(InvalidParameter, match="sdxl-a.safetensors was made for sdxl.*choose a LoRA for flux"):
        make_image(with_loras(base, (adapter_files["sdxl-a"], 1.0, 1.0)))
    wide = tmp_path / "wide.safetensors"
    tiny_adapters.write_kohya_flux(wide, width=64)
    with pytest.raises(InvalidParameter, match="wide.safetensors does not fit tiny-flux-dev"):
        make_image(with_loras(base, (wide, 1.0, 1.0)))
    none = tmp_path / "none.safetensors"
    save_file({f"transformer.nothing.lora_{kind}.weight": torch.ones(4, 4) for kind in "AB"}, none)
    with pytest.raises(InvalidParameter, match="none.safetensors"):
        make_image(with_loras(base, (none, 1.0, 1.0)))
    assert torch.equal(make_image(base), before)
    half = tmp_path / "half.safetensors"
    half.write_bytes(adapter_files["flux-a"].read_bytes()[:-100])
    with pytest.raises(WeightsMissing, match="half.safetensors is damaged.*fetch the file again"):
        check_lora(base.model, stamp_file(half.name, half))
    pickled = tmp_path / "old.pt"
    pickled.write_bytes(b"x")
    with pytest.raises(WeightsMissing, match="old.pt is a .pt file.*convert it"):
        check_lora(base.model, stamp_file(pickled.name, pickled))


def test_after_a_failed_load_no_lora_is_in_effect(
    tiny_models: dict[str, Path], adapter_files: dict[str, Path], tmp_path: Path
) -> None:
    """Not even one that was in effect before, and that stays loaded."""
    from neurolux.errors import InvalidParameter

    base = handle_for(tiny_models["tiny-flux-dev"])
    good = (adapter_files["flux-a"], 1.0, 1.0)
    wide = tmp_path / "wide.safetensors"
    tiny_adapters.write_kohya_flux(wide, width=64)
    before, changed = make_image(base), make_image(with_loras(base, good))
    loaded = borrow(with_loras(base, good))
    for _ in range(2):
        with pytest.raises(InvalidParameter, match="wide.safetensors does not fit"):
            borrow(with_loras(base, good, (wide, 1.0, 1.0)))
        assert loaded.loras.active == ()
        layer: Any = loaded.denoiser.get_submodule("transformer_blocks.0.attn.to_q")
        values = torch.randn(2, layer.in_features)
        assert torch.equal(layer(values), layer.base_layer(values))
        assert torch.equal(make_image(base), before)
        assert torch.equal(make_image(with_loras(base, good)), changed)


@pytest.mark.parametrize("dialect", ["flux-a", "flux-kohya", "ours"])
def test_running_out_of_memory_while_a_lora_loads_says_what_to_do_and_leaves_nothing(
    tiny_models: dict[str, Path],
    adapter_files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dialect: str,
) -> None:
    from neurolux.adapters.lora import applied as adapters
    from neurolux.adapters.lora import insertion as lora_insertion
    from neurolux.errors import OutOfMemory
    from safetensors.torch import load_file, save_file

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    base = handle_for(tiny_models["tiny-flux-dev"])
    before = make_image(base)
    file = adapter_files.get(dialect, tmp_path / "ours.safetensors")
    if dialect == "ours":
        named = load_file(adapter_files["flux-a"])
        save_file({key.removeprefix("transformer."): value for key, value in named.items()}, file)
    with monkeypatch.context() as patch:
        patch.setattr(type(borrow(base).pipe), "load_lora_weights", full)
        patch.setattr(lora_insertion, "put_in", full)
        with pytest.raises(OutOfMemory, match=rf"while loading LoRA {file.name}: .*2.00 GiB.*leaner offload"):
            borrow(with_loras(base, (file, 1.0, 1.0)))
        assert torch.equal(make_image(base), before)
    with monkeypatch.context() as patch:
        patch.setattr(adapters, "converted", full)
        if dialect != "ours":
            with pytest.raises(OutOfMemory, match="2.00 GiB"):
                borrow(with_loras(base, (file, 1.0, 1.0)))
    assert not torch.equal(make_image(with_loras(base, (file, 1.0, 1.0))), before)
    assert torch.equal(make_image(base), before)


def test_lora_and_controlnet_act_together(tiny_models: dict[str, Path], adapter_files: dict[str, Path]) -> None:
    base = handle_for(tiny_models["tiny-sdxl"])
    controlled = with_controls(base, {"path": adapter_files["tiny-sdxl-canny"]})
    both = with_loras(controlled, (adapter_files["sdxl-a"], 1.0, 1.0))
    images = [make_image(handle) for handle in (base, controlled, both, controlled, base)]
    assert torch.equal(images[0], images[4])
    assert torch.equal(images[1], images[3])
    assert not torch.equal(images[1], images[2])


def test_a_lora_changes_the_starter_and_leaves_no_trace(tmp_path: Path) -> None:
    from neurolux.catalog.reading import read_catalog
    from neurolux.loading.store import load_handle

    path = tiny_adapters.write_peft(tmp_path / "starter.safetensors", STARTER, seed=5)
    base = load_handle(read_catalog().models["starter"], ())
    before = make_image(base)
    changed = make_image(with_loras(base, (path, 1.0, 1.0)))
    assert not torch.equal(changed, before)
    assert torch.equal(make_image(base), before)
