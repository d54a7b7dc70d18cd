"""Results that are read from ComfyUI's output folder, against a real ComfyUI that saves them there."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.comfyui import ComfyUI, ComfyUIError, ComfyUIUnavailable
from bridge.comfyui.output_folder import SMALL_BYTES
from bridge.service.children.comfyui import ARGUMENTS_VARIABLE, ManagedComfyUI, free_port, output_directory
from tests.bridge_process.graphs import make_image, new_id


@pytest.fixture
def folder(server: ManagedComfyUI) -> Path:
    """The output folder of the running ComfyUI."""
    return server.base_directory / "output"


async def saved(comfyui: ComfyUI) -> dict[str, str]:
    result = await comfyui.run(make_image(save=True), prompt_id=new_id())
    return result.outputs["2"]["images"][0]


async def test_what_a_run_saved_is_read_without_comfyui(comfyui: ComfyUI, folder: Path) -> None:
    name = await saved(comfyui)
    async with ComfyUI(f"http://127.0.0.1:{free_port()}", output_dir=folder) as nobody:
        assert await nobody.view(**name) == await comfyui.view(**name)
        with pytest.raises(ComfyUIUnavailable):
            await nobody.view(**name | {"type": "temp"})


async def test_a_large_result_is_read_whole(comfyui: ComfyUI, tmp_path: Path) -> None:
    data = bytes(range(256)) * (SMALL_BYTES // 256 + 1)
    (tmp_path / "video.mp4").write_bytes(data)
    async with ComfyUI(comfyui.url, output_dir=tmp_path) as reader:
        assert await reader.view("video.mp4", "", "output") == data


async def test_what_is_not_there_is_asked_of_comfyui(comfyui: ComfyUI, tmp_path: Path) -> None:
    name = await saved(comfyui)
    async with ComfyUI(comfyui.url, output_dir=tmp_path / "elsewhere") as reader:
        assert await reader.view(**name) == await comfyui.view(**name)


@pytest.mark.parametrize("way", ["up", "absolute", "link", "null"])
async def test_nothing_outside_the_folder_is_read(comfyui: ComfyUI, tmp_path: Path, way: str) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    output = tmp_path / "output"
    output.mkdir()
    (output / "link.png").symlink_to(secret)
    filename, subfolder = {
        "up": ("secret.png", ".."),
        "absolute": (str(secret), ""),
        "link": ("link.png", ""),
        "null": ("a\0b.png", ""),
    }[way]
    async with ComfyUI(comfyui.url, output_dir=output) as reader:
        with pytest.raises(ComfyUIError, match="HTTP 400|HTTP 403|has no file"):
            await reader.view(filename, subfolder, "output")


@pytest.mark.parametrize(
    ("arguments", "known"),
    [("", True), ("--lowvram", True), ("--output-directory /elsewhere", False), ("--base-dir=/elsewhere", False)],
)
def test_a_folder_that_the_user_may_have_moved_is_not_guessed(tmp_path: Path, arguments: str, known: bool) -> None:
    folder = output_directory(tmp_path, {ARGUMENTS_VARIABLE: arguments})
    assert folder == (tmp_path / "output" if known else None)
