"""Tiny models, and one real ComfyUI for the whole session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO / "custom_nodes"))

from tests import tiny_adapters  # noqa: E402
from tests.pack.comfy_server import ComfyServer, comfyui_dir, running_comfyui  # noqa: E402
from tests.tiny_models import write_tiny_models  # noqa: E402


@pytest.fixture(scope="session")
def base_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's user folder: models, input, output."""
    return tmp_path_factory.mktemp("comfyui")


@pytest.fixture(scope="session")
def tiny_models(base_directory: Path) -> dict[str, Path]:
    """The tiny models' folders, where ComfyUI finds them."""
    return write_tiny_models(base_directory / "models" / "diffusers")


@pytest.fixture(scope="session")
def comfy_modules() -> None:
    """ComfyUI's own modules in this process, on the CPU: for faults that a server cannot be made to show.

    Its folder goes to the end of the path, because it has modules called ``tests``, ``utils`` and ``server``.
    """
    sys.path.append(str(comfyui_dir()))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True


@pytest.fixture
def unloaded(comfy_modules: None) -> Iterator[None]:
    """What a test loads into this process is dropped afterwards."""
    yield
    from neurolux.loading.store import pipelines
    from neurolux.memory.module_store import modules

    pipelines.clear()
    modules.clear()


@pytest.fixture(scope="session")
def controlnets(base_directory: Path) -> dict[str, Path]:
    """The tiny ControlNets' folders, where ComfyUI finds them."""
    return tiny_adapters.write_controlnets(base_directory / "models" / "controlnet")


@pytest.fixture(scope="session")
def adapter_files(base_directory: Path, tiny_models: dict[str, Path], controlnets: dict[str, Path]) -> dict[str, Path]:
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
    return written | controlnets


@pytest.fixture(scope="session")
def comfyui(base_directory: Path, tiny_models: dict[str, Path]) -> Iterator[ComfyServer]:
    """ComfyUI with the pack and the tiny models."""
    with running_comfyui(comfyui_dir(), base_directory, REPO / "custom_nodes") as server:
        yield server
