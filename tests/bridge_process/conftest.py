"""A real ComfyUI with a few test nodes, started once by the bridge's own code."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import yaml

from bridge.comfyui import ComfyUI
from bridge.service.children.comfyui import ManagedComfyUI
from bridge.service.installer import Installation, pinned_installation
from bridge.settings import Settings
from tests.bridge_process.instance import Instance

HERE = Path(__file__).parent
STATE_DIR = Settings.from_environment(os.environ).state_dir
"""Read before anything redirects it: the unpacked ComfyUI is shared by all test runs."""


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The pinned ComfyUI, unpacked once a machine."""
    return pinned_installation(Settings(state_dir=STATE_DIR))


@pytest.fixture(scope="session")
async def server(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ManagedComfyUI]:
    """A running ComfyUI without our pack; with the nodes of `comfyui_nodes`."""
    settings = Settings(state_dir=tmp_path_factory.mktemp("comfyui-state"))
    settings.make_directories()
    paths = settings.state_dir / "paths.yaml"
    paths.write_text(yaml.safe_dump({"test": {"custom_nodes": str(HERE / "comfyui_nodes")}}))
    comfyui = ManagedComfyUI(
        installation,
        base_directory=settings.comfyui_base,
        extra_model_paths=paths,
        log_file=settings.logs / "comfyui.log",
        extra_arguments=["--disable-api-nodes"],
        require_pack=False,
    )
    await comfyui.start()
    try:
        await comfyui.wait_ready()
        yield comfyui
    finally:
        await comfyui.stop()


@pytest.fixture
async def comfyui(server: ManagedComfyUI) -> AsyncIterator[ComfyUI]:
    """A client of it, and an empty queue afterwards."""
    async with ComfyUI(server.url) as client:
        yield client
        queue = await client.queue_snapshot(not_before=asyncio.get_running_loop().time())
        for prompt_id in [*queue.pending, *queue.running]:
            await client.cancel(prompt_id)


@pytest.fixture
def instances(tmp_path: Path) -> Iterator[Callable[[str], Instance]]:
    made: list[Instance] = []

    def make(name: str) -> Instance:
        made.append(Instance(tmp_path / name))
        return made[-1]

    yield make
    for instance in made:
        instance.end()


@pytest.fixture
def instance(instances: Callable[[str], Instance]) -> Instance:
    return instances("state")
