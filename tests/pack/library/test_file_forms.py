"""Forms of files that people have: names, links, prefixes and relatives; each is used, or named as what it is."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MotionAdapter
from neurolux.catalog.reading import read_catalog
from neurolux.errors import WeightsMissing
from neurolux.families.files.identify import read_kind
from neurolux.families.registry import family_of
from neurolux.library.shelf import files_below
from neurolux.library.single_files import complete, files_model
from neurolux.weights.stamps import stamp_file

from tests.pack.comfy_server import comfyui_dir
from tests.pack.loading.test_single_files import build, encoders, make_image, ready, shelf_of, write
from tests.tiny_files import Tensors, bfl_flux, state_of, tiny_flux

pytestmark = pytest.mark.usefixtures("comfy_modules")


@pytest.fixture(scope="module")
def flux() -> Any:
    return ready(tiny_flux(comfyui_dir(), guidance=True))


def norms_as_weights(state: Tensors) -> Tensors:
    """As some converters write BFL's norms."""
    return {name.replace("_norm.scale", "_norm.weight"): value for name, value in state.items()}


FORMS: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "norms called weight": ("flux.safetensors", norms_as_weights),
    "sft": ("flux.sft", dict),
    "capital letters": ("flux.SAFETENSORS", dict),
    "SFT": ("FLUX.SFT", dict),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_a_file_makes_the_same_image(flux: Any, tmp_path: Path, form: str) -> None:
    name, change = FORMS[form]
    main = write(tmp_path / "diffusion_models" / name, change(bfl_flux(state_of(flux.transformer))))
    for other, weights in encoders(flux).items():
        write(tmp_path / other, weights)
    source = complete(family_of("flux"), {"transformer": main}, shelf_of(tmp_path))
    assert [path.name for path in files_below(tmp_path / "diffusion_models")] == [name]
    made = make_image(build(files_model(family_of("flux"), source, read_catalog())))
    assert torch.equal(made, make_image(flux))


PARTS = {
    "flux1-dev-00001-of-00003.safetensors": "is part 1 of 3 of a model; use one whole file, or put all parts",
    "diffusion_pytorch_model-00002-of-00002.SAFETENSORS": "is part 2 of 2 of a model",
    "flux-00001-of-00002.gguf": "is part 1 of 2 of a model",
    "flux-00001-of-00001.safetensors": "",
    "step-00001.safetensors": "",
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_model_is_named_as_one(tmp_path: Path, name: str) -> None:
    """Hugging Face and llama.cpp split large files; each part begins as a whole file does."""
    path = tmp_path / name
    if name.endswith(".gguf"):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(8))
    else:
        write(path, {"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)})
    if not PARTS[name]:
        assert read_kind(path).kind
        return
    with pytest.raises(WeightsMissing, match=f"{name} {PARTS[name]}"):
        read_kind(path)


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/other.safetensors", "sub/other.safetensors", ""])
def test_an_index_names_files_beside_it_only(tmp_path: Path, shard: str) -> None:
    from neurolux.loading.components import shards_of

    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": shard}}))
    with pytest.raises(WeightsMissing, match=f"it names {shard!r}, which is no file beside it"):
        shards_of(index)


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere / "inner" / "a.safetensors", {"x": torch.zeros(1)})
    root = tmp_path / "loras"
    root.mkdir()
    (root / "folder").symlink_to(elsewhere)
    (root / "b.safetensors").symlink_to(elsewhere / "inner" / "a.safetensors")
    (root / "loop").symlink_to(root)
    (elsewhere / "back").symlink_to(root)
    found = [path.relative_to(root).as_posix() for path in files_below(root)]
    assert found == ["b.safetensors", "folder/inner/a.safetensors"]


@pytest.mark.parametrize("name", ["linked.safetensors", "folder/one.safetensors"])
def test_a_linked_lora_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    import folder_paths
    from neurolux.library.adapter_folders import adapter_names, find_adapter

    real = write(tmp_path / "real" / "one.safetensors", {"x": torch.zeros(1)})
    root = tmp_path / "loras"
    root.mkdir()
    (root / "linked.safetensors").symlink_to(real)
    (root / "folder").symlink_to(real.parent)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(root)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("loras", None)
    assert name in adapter_names("lora")
    assert find_adapter("lora", name).path == root / name


@pytest.mark.parametrize("name", ["../real/one.safetensors", "folder/../../real/one.safetensors", "/etc/hostname"])
def test_a_name_does_not_leave_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    import folder_paths
    from neurolux.library.adapter_folders import locate

    write(tmp_path / "real" / "one.safetensors", {"x": torch.zeros(1)})
    (tmp_path / "loras" / "folder").mkdir(parents=True)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    assert locate("lora", name) is None


OTHERS = {
    "nerf_image_embedder.embedder.0.weight": "Chroma Radiance transformer",
    "single_stream_modulation.lin.weight": "FLUX.2 dev transformer",
    "joint_blocks.0.x_block.attn.qkv.weight": "Stable Diffusion 3 transformer",
}


@pytest.mark.parametrize("mark", OTHERS)
def test_a_relative_of_flux_is_called_by_its_name(flux: Any, tmp_path: Path, mark: str) -> None:
    state = {**bfl_flux(state_of(flux.transformer)), mark: torch.zeros(4, 4)}
    main = write(tmp_path / "diffusion_models" / "chroma.safetensors", state)
    assert read_kind(main).kind == OTHERS[mark]
    with pytest.raises(WeightsMissing, match=f"chroma.safetensors is a {OTHERS[mark]}"):
        complete(family_of("flux"), {"transformer": main}, shelf_of(tmp_path))


@pytest.mark.parametrize(
    "other", ["sd3_vae.safetensors", "sd3.5_vae.safetensors", "stable-diffusion-3.5-vae.safetensors"]
)
def test_a_vae_of_another_family_is_not_taken_by_its_shape(flux: Any, tmp_path: Path, other: str) -> None:
    main = write(tmp_path / "diffusion_models" / "flux.safetensors", bfl_flux(state_of(flux.transformer)))
    files = encoders(flux)
    vae = files.pop("vae/ae.safetensors")
    for name, weights in files.items():
        write(tmp_path / name, weights)
    write(tmp_path / "vae" / other, vae)
    with pytest.raises(WeightsMissing, match="no VAE found"):
        complete(family_of("flux"), {"transformer": main}, shelf_of(tmp_path))
    write(tmp_path / "vae" / "zz.safetensors", vae)
    source = complete(family_of("flux"), {"transformer": main}, shelf_of(tmp_path))
    assert source.components["vae"].name == "zz.safetensors"


def test_a_vae_for_videos_is_no_vae_for_images(flux: Any, tmp_path: Path) -> None:
    vae = {name: value[:, :, None] if value.dim() == 4 else value for name, value in state_of(flux.vae).items()}
    path = write(tmp_path / "vae" / "wan_2.1_vae.safetensors", vae)
    assert not read_kind(path).parts


def original_motion(state: Tensors) -> Tensors:
    """Under AnimateDiff's own names."""
    found: Tensors = {}
    for name, value in state.items():
        stem = ".temporal_transformer."
        new = name.replace("motion_modules.", "motion_modules.", 1)
        number = new.index(".", new.index("motion_modules.") + len("motion_modules."))
        new = new[:number] + stem + new[number + 1 :]
        new = new.replace(".pos_embed.pe", ".pos_encoder.pe")
        for ours, theirs in (("attn1.", "attention_blocks.0."), ("attn2.", "attention_blocks.1.")):
            new = new.replace(ours, theirs)
        new = new.replace(".norm1.", ".norms.0.").replace(".norm2.", ".norms.1.").replace(".norm3.", ".ff_norm.")
        found[new] = value
    return found


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("frames", [16, 24, 64])
def test_a_motion_module_has_the_frames_of_its_file(tmp_path: Path, frames: int, prefix: str) -> None:
    from neurolux.adapters.motion.weights import build_motion_adapter

    adapter: Any = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=8,
        motion_norm_num_groups=32,
        motion_max_seq_length=frames,
        use_motion_mid_block=False,
    )
    state = {**state_of(adapter), **{name: value for name, value in adapter.named_buffers()}}
    for names in (dict, original_motion):
        weights = {prefix + name: value for name, value in names(state).items()}
        path = write(tmp_path / "mm.safetensors", weights)
        built = build_motion_adapter(stamp_file(path.name, path), torch.float32)
        assert built.config.motion_max_seq_length == frames
        assert all(torch.equal(value, state[name]) for name, value in built.named_parameters())


def test_an_error_of_a_library_keeps_its_reason() -> None:
    from neurolux.loading.modules import load_module

    def work() -> None:
        raise RuntimeError("Error(s) in loading state_dict for X:\n\tsize mismatch for conv_in: 4 and 9")

    with pytest.raises(WeightsMissing, match="size mismatch for conv_in: 4 and 9"):
        load_module("ControlNet x", "choose another", work)
