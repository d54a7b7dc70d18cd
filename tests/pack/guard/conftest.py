"""A ComfyUI without the pack: each attack succeeds there, so that its test proves something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pack.comfy_server import ComfyServer, comfyui_dir, running_comfyui


@pytest.fixture(scope="session")
def bare_comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """ComfyUI as it is published, with nothing of ours."""
    with running_comfyui(comfyui_dir(), tmp_path_factory.mktemp("bare"), None) as server:
        yield server


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory, base_directory: Path, bare_comfyui: ComfyServer) -> str:
    """The name of an image outside of each ComfyUI's input and model folders, without its extension."""
    from PIL import Image

    for base in (base_directory, bare_comfyui.log.parent):
        (base / "models" / "loras").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(base / "secret.png")
    return "secret"
