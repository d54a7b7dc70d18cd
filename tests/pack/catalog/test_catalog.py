"""The catalog, and folders as models: no ComfyUI, no weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from neurolux.catalog.limits import Limits
from neurolux.catalog.models import FolderSource, RepoSource
from neurolux.catalog.reading import CATALOG_FILE, parse_limits, parse_source, read_catalog
from neurolux.errors import InvalidParameter, ModelNotFound
from neurolux.library.folder_models import find_folder_models, folder_model


def test_catalog_knows_its_models() -> None:
    catalog = read_catalog()
    assert list(catalog.models) == [
        "starter", "flux-schnell", "flux-dev", "sdxl-lightning", "flux-krea-dev", "flux-fill-dev", "flux-kontext-dev",
        "sdxl-base", "sdxl-turbo", "chroma1-hd", "z-image-turbo", "z-image", "flux2-klein-4b", "flux2-klein-base-4b",
        "flux2-klein-9b", "qwen-image-2512", "qwen-image", "krea-2-turbo", "krea-2-raw", "sd15",
    ]  # fmt: skip
    assert catalog.fallback in catalog.models
    assert [name for name, model in catalog.models.items() if model.commercial_use] == [
        "starter", "flux-schnell", "sdxl-lightning", "sdxl-base", "chroma1-hd", "z-image-turbo", "z-image",
        "flux2-klein-4b", "flux2-klein-base-4b", "qwen-image-2512", "qwen-image", "sd15",
    ]  # fmt: skip
    assert {name: model.purpose for name, model in catalog.models.items() if model.purpose != "any"} == {
        "flux-fill-dev": "fill",
        "flux-kontext-dev": "edit",
        "flux2-klein-4b": "draw-edit",
        "flux2-klein-base-4b": "draw-edit",
        "flux2-klein-9b": "draw-edit",
    }
    assert catalog.names("sdxl") == ["sdxl-lightning", "sdxl-base", "sdxl-turbo"]


def test_unknown_model_lists_the_known() -> None:
    with pytest.raises(
        ModelNotFound, match="unknown model 'flux'; known are starter, flux-schnell, flux-dev, sdxl-lightning"
    ):
        read_catalog().get("flux")


def test_lightning_has_a_checkpoint_for_each_number_of_steps() -> None:
    model = read_catalog().get("sdxl-lightning")
    assert model.variant(0) == 4
    assert model.checkpoints[1].file == "sdxl_lightning_1step_unet_x0.safetensors"
    assert model.checkpoints[1].scheduler == {"prediction_type": "sample"}
    assert model.checkpoints[8].file == "sdxl_lightning_8step_unet.safetensors"
    assert set(model.checkpoints) == set(model.limits.num_inference_steps.choices or ())
    with pytest.raises(InvalidParameter, match="3 is not available; this model has 1, 2, 4, 8"):
        model.variant(3)


def test_other_models_ignore_the_loader_s_steps() -> None:
    assert read_catalog().get("flux-dev").variant(28) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1000, "width 1000 is not a multiple of 16; nearest are 992 and 1008"),
        (240, "width 240 is outside 256 to 2048 of this model; nearest is 256"),
        (2064, "width 2064 is outside 256 to 2048 of this model; nearest is 2048"),
    ],
)
def test_size_error_names_the_nearest(value: int, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message) as error:
        Limits().width.check("width", value)
    assert error.value.field == "width"


def test_a_bundled_model_is_a_folder_beside_the_catalog(tmp_path: Path) -> None:
    assert parse_source({"kind": "bundled", "path": "starter"}, tmp_path) == FolderSource(tmp_path / "starter", True)


def test_a_misspelt_key_is_an_error() -> None:
    with pytest.raises(TypeError):
        parse_limits({"widht": {"min": 1}})
    with pytest.raises(ValueError, match="unknown source kind"):
        parse_source({"kind": "zip"}, Path())


def test_folders_follow_the_rules_of_their_family(tiny_models: dict[str, Path]) -> None:
    models = {name: folder_model(folder) for name, folder in tiny_models.items()}
    summary = {
        name: (
            model.family,
            model.defaults.num_inference_steps,
            model.defaults.guidance_scale,
            model.max_sequence_length,
            model.limits.num_inference_steps.choices,
            model.limits.negative_prompt,
        )
        for name, model in models.items()
        if model is not None
    }
    assert summary == {
        "tiny-flux-schnell": ("flux", 4, 0.0, 256, None, False),
        "tiny-flux-dev": ("flux", 28, 3.5, 512, None, False),
        "tiny-flux-fill": ("flux", 50, 30.0, 512, None, False),
        "tiny-flux-kontext": ("flux", 28, 2.5, 512, None, False),
        "tiny-chroma": ("chroma", 40, 3.0, 512, None, True),
        "tiny-z-image": ("z-image", 50, 5.0, 512, None, True),
        "tiny-flux2-klein": ("flux2", 4, 0.0, 512, None, False),
        "tiny-flux2-klein-base": ("flux2", 50, 4.0, 512, None, True),
        "tiny-qwen-image": ("qwen-image", 50, 4.0, 512, None, True),
        "tiny-krea2": ("krea2", 28, 5.5, 512, None, True),
        "tiny-sd15": ("sd15", 30, 7.5, 77, None, True),
        "tiny-sdxl-lightning": ("sdxl", 4, 0.0, 77, (1, 2, 4, 8), False),
        "tiny-sdxl": ("sdxl", 30, 5.0, 77, None, True),
    }
    assert {(model.defaults.width, model.limits.width.minimum) for model in models.values() if model} == {(128, 64)}


def copy_without_weights(source: Path, target: Path) -> Path:
    """A model's configuration files."""
    return shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))


def test_neurolux_toml_overrides_what_the_folder_says(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_without_weights(tiny_models["tiny-sdxl-lightning"], tmp_path / "mine")
    (folder / "neurolux.toml").write_text(
        'title = "Mine"\nlicense = "MIT"\ncommercial_use = true\n[defaults]\nwidth = 512\nnum_inference_steps = 2\n'
        "[limits]\nwidth = { max = 768 }\nnum_inference_steps = { choices = [2] }\n"
    )
    (model,) = find_folder_models([tmp_path])
    assert (model.title, model.license, model.commercial_use) == ("Mine", "MIT", True)
    assert (model.defaults.width, model.defaults.height, model.defaults.num_inference_steps) == (512, 128, 2)
    assert (model.limits.width.minimum, model.limits.width.maximum) == (64, 768)
    assert model.limits.num_inference_steps.choices == (2,)


def test_a_folder_that_cannot_be_read_is_left_out(
    tiny_models: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy_without_weights(tiny_models["tiny-flux-dev"], tmp_path / "good")
    broken = copy_without_weights(tiny_models["tiny-flux-dev"], tmp_path / "broken")
    (broken / "neurolux.toml").write_text('titel = "typing mistake"')
    other = copy_without_weights(tiny_models["tiny-flux-dev"], tmp_path / "other")
    (other / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    assert [model.name for model in find_folder_models([tmp_path, tmp_path / "missing"])] == ["good"]
    assert "unknown keys titel" in caplog.text


def test_a_changed_folder_is_read_again(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_without_weights(tiny_models["tiny-flux-dev"], tmp_path / "model")
    first = folder_model(folder)
    assert first is not None
    assert folder_model(folder) is first
    (folder / "neurolux.toml").write_text('title = "Renamed"')
    changed = folder_model(folder)
    assert changed is not None
    assert changed.title == "Renamed"


def test_what_was_not_verified_is_shown_as_such() -> None:
    from neurolux.catalog.auxiliary import read_auxiliary_catalog
    from neurolux.library.inventory import inventory
    from neurolux.library.shelf import Shelf
    from neurolux.weights.download.sources import ModelStatus

    catalog = read_catalog()
    assert not catalog.get("starter").unverified
    assert catalog.get("sdxl-turbo").unverified == ("settings",)
    schnell = inventory(catalog.get("flux-schnell"), ModelStatus("downloadable"), Shelf({})).download
    assert schnell is not None
    assert (schnell.gated, schnell.license) == (True, "Apache-2.0")
    base = inventory(catalog.get("sdxl-base"), ModelStatus("downloadable"), Shelf({})).download
    assert base is not None
    assert base.license == "OpenRAIL++ (not verified)"
    motion = read_auxiliary_catalog().motions["animatediff-v3"]
    assert (motion.license_text, motion.commercial_use) == ("unknown (not verified)", False)


def test_the_facts_of_small_models_are_verified_or_marked() -> None:
    """Those without a source are known."""
    from neurolux.catalog.auxiliary import read_auxiliary_catalog

    catalog = read_auxiliary_catalog()
    every = {**catalog.controlnets, **catalog.preprocessors, **catalog.motions}
    assert all("size" in one.verified for one in every.values())
    assert {name for name, one in every.items() if "license" not in one.verified} == {
        "flux-union-pro-2", "animatediff-v3",
    }  # fmt: skip
    assert "soft edge" in catalog.controlnets["flux-union-pro-2"].kinds


def test_a_misspelt_fact_of_a_small_model_is_an_error(tmp_path: Path) -> None:
    from neurolux.catalog.auxiliary import read_auxiliary_catalog

    broken = CATALOG_FILE.read_text().replace('verified = { size = "computed from its six', 'verified = { sise = "x')
    (tmp_path / "models.toml").write_text(broken)
    with pytest.raises(TypeError, match="unknown facts sise"):
        read_auxiliary_catalog(tmp_path / "models.toml")


def test_an_unknown_verified_fact_is_an_error(tmp_path: Path) -> None:
    from neurolux.catalog.reading import parse_verified

    with pytest.raises(TypeError, match="unknown facts licence; known are license, size, settings"):
        parse_verified({"licence": "x"})


def test_repo_sources_fetch_only_what_the_pipeline_needs() -> None:
    sources = [model.source for model in read_catalog().models.values() if isinstance(model.source, RepoSource)]
    assert len(sources) == 19
    for source in sources:
        assert "*" not in source.files
        assert not any(file.startswith("*") or file.endswith((".bin", ".msgpack")) for file in source.files)
