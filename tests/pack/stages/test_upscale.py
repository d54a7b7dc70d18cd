"""Upscale Image: by a real, tiny upscale model, and by Lanczos where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.usefixtures("comfy_modules")


def photo(height: int = 40, width: int = 64) -> torch.Tensor:
    """Random pixels, as ComfyUI's IMAGE."""
    return torch.randint(0, 256, (2, height, width, 3), generator=torch.Generator().manual_seed(1)) / 255


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's folder of upscale models, empty."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "upscale_models", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("upscale_models", None)
    return tmp_path


def write_esrgan(path: Path) -> Any:
    """A tiny ESRGAN that doubles an image's sides."""
    from safetensors.torch import save_file
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(3)
    module = ESRGAN(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=2)
    save_file(module.state_dict(), path)
    return module


def test_without_a_model_it_is_lanczos(models: Path) -> None:
    from neurolux.stages.upscale import upscale

    made = upscale(photo(), 1.5, "auto")
    assert made.shape == (2, 60, 96, 3)
    channel = Image.fromarray(photo()[1, ..., 0].numpy()).resize((96, 60), Image.Resampling.LANCZOS)
    assert np.array_equal(made[1, ..., 0].numpy(), np.asarray(channel).clip(0, 1))
    assert torch.equal(made, upscale(photo(), 1.5, "lanczos"))


def test_a_model_that_is_there_is_used_and_the_size_is_what_was_asked(models: Path) -> None:
    from neurolux.stages.upscale import upscale, upscaler_names
    from spandrel import ImageModelDescriptor, ModelLoader

    write_esrgan(models / "tiny.safetensors")
    assert upscaler_names() == ["auto", "lanczos", "tiny.safetensors"]
    made = upscale(photo(), 2.0, "auto")
    module = ModelLoader().load_from_file(models / "tiny.safetensors").eval()
    assert isinstance(module, ImageModelDescriptor)
    with torch.no_grad():
        expected = module(photo().movedim(-1, 1)).movedim(1, -1).clamp(0, 1)
    assert torch.allclose(made, expected, atol=1e-5)
    assert not torch.allclose(made, upscale(photo(), 2.0, "lanczos"), atol=0.05)
    assert upscale(photo(), 3.0, "tiny.safetensors").shape == (2, 120, 192, 3)


def test_a_file_that_is_missing_or_no_upscale_model_is_named(models: Path) -> None:
    from neurolux.errors import InvalidParameter, WeightsMissing
    from neurolux.stages.upscale import upscale
    from safetensors.torch import save_file

    with pytest.raises(InvalidParameter, match=r"no upscale model 'x\.pth'; known are auto, lanczos"):
        upscale(photo(), 2.0, "x.pth")
    save_file({"a": torch.zeros(2)}, models / "other.safetensors")
    with pytest.raises(WeightsMissing, match=r"other\.safetensors cannot be loaded"):
        upscale(photo(), 2.0, "other.safetensors")
