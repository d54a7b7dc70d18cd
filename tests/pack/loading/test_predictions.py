"""What a checkpoint says of its training decides how it is sampled, or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from neurolux.catalog.reading import read_catalog
from neurolux.errors import WeightsMissing
from neurolux.families.registry import family_of
from neurolux.library.single_files import catalog_files, complete, files_model
from safetensors.torch import save_file

from tests.pack.comfy_server import comfyui_dir
from tests.pack.loading.test_single_files import build, make_image, ready, sdxl_checkpoint, shelf_of
from tests.tiny_files import tiny_sdxl

pytestmark = pytest.mark.usefixtures("comfy_modules")
V = {"prediction_type": "v_prediction"}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
ROWS: dict[str, tuple[str, tuple[str, ...], dict[str, str], dict[str, Any] | str]] = {
    "plain": ("mine", (), {}, {}),
    "v_pred": ("mine", ("v_pred",), {}, V),
    "v_pred and ztsnr": ("mine", ("v_pred", "ztsnr"), {}, V | ZERO),
    "ztsnr alone": ("mine", ("ztsnr",), {}, ZERO),
    "ModelSpec: v": ("mine", (), {"modelspec.prediction_type": "v"}, V),
    "ModelSpec: epsilon": ("mine", (), {"modelspec.prediction_type": "epsilon"}, {}),
    "kohya": ("mine", (), {"ss_v_parameterization": "True"}, V),
    "Lightning of v": ("mine_lightning_4step", ("v_pred",), {}, V | {"timestep_spacing": "trailing"}),
    "EDM": ("mine", ("edm_mean", "edm_std"), {}, "EDM"),
    "EDM with v": ("mine", ("edm_vpred.sigma_max",), {}, "EDM"),
    "something else": ("mine", (), {"modelspec.prediction_type": "x0"}, "'x0'"),
}


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return ready(tiny_sdxl(comfyui_dir(), lightning=False))


def put(root: Path, name: str, sdxl: Any, marks: tuple[str, ...], metadata: dict[str, str]) -> Path:
    """A checkpoint with such marks."""
    path = root / "checkpoints" / f"{name}.safetensors"
    path.parent.mkdir(parents=True)
    weights = {key: value.contiguous() for key, value in sdxl_checkpoint(sdxl).items()}
    save_file({**weights, **{mark: torch.zeros(0) for mark in marks}}, path, metadata or None)
    return path


@pytest.mark.parametrize("row", ROWS)
def test_a_checkpoint_is_sampled_as_it_was_trained(sdxl: Any, tmp_path: Path, row: str) -> None:
    name, marks, metadata, outcome = ROWS[row]
    main = put(tmp_path, name, sdxl, marks, metadata)
    if isinstance(outcome, str):
        with pytest.raises(WeightsMissing, match=f"{name}.safetensors.*{outcome}"):
            complete(family_of("sdxl"), {"unet": main}, shelf_of(tmp_path))
        return
    source = complete(family_of("sdxl"), {"unet": main}, shelf_of(tmp_path))
    made = make_image(build(files_model(family_of("sdxl"), source, read_catalog())), guidance_scale=0.0)
    before = sdxl.scheduler
    try:
        sdxl.scheduler = EulerDiscreteScheduler.from_config(before.config, **outcome)
        assert torch.equal(made, make_image(sdxl, guidance_scale=0.0))
    finally:
        sdxl.scheduler = before
    assert torch.equal(made, make_image(sdxl, guidance_scale=0.0)) == (not outcome)


@pytest.mark.parametrize("chosen", [True, False])
def test_a_file_of_sdxl_turbo_has_trailing_timesteps(sdxl: Any, tmp_path: Path, chosen: bool) -> None:
    main = put(tmp_path, "sd_xl_turbo_1.0_fp16", sdxl, (), {})
    if chosen:
        source = complete(family_of("sdxl"), {"unet": main}, shelf_of(tmp_path))
        model = files_model(family_of("sdxl"), source, read_catalog())
    else:
        model = catalog_files(read_catalog(), shelf_of(tmp_path)).get("sdxl-turbo")
        assert model.local
    made = make_image(build(model), guidance_scale=0.0)
    before = sdxl.scheduler
    try:
        sdxl.scheduler = EulerAncestralDiscreteScheduler.from_config(before.config, timestep_spacing="trailing")
        assert torch.equal(made, make_image(sdxl, guidance_scale=0.0))
    finally:
        sdxl.scheduler = before
