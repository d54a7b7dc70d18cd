"""The whole service as a user starts it, once for the session: real ComfyUI, real nats-server, tiny weights."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Page

from bridge.client import ClientError, ImageGenClient
from bridge.service.children.comfyui import free_port
from bridge.service.installer import find_installation
from bridge.service.runtime import running_service
from bridge.settings import Settings
from tests.service.front_ends import Editor, open_editor
from tests.tiny_models import write_tiny_models

DEFAULT_MODEL = "tiny-flux-schnell"
READY_TIMEOUT_S = 180


@dataclass(frozen=True)
class Service:
    """A running service and what a client must know of it."""

    settings: Settings
    comfyui_url: str
    nats_url: str

    @property
    def url(self) -> str:
        return self.settings.url


def wait_ready(settings: Settings, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the service would run a request; fails with its log as soon as its process has ended."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    with ImageGenClient(settings.url) as client:
        while True:
            assert process.poll() is None, log.read_text()
            try:
                return client.wait_ready(1)
            except ClientError:
                if time.monotonic() > deadline:
                    raise


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    installation = find_installation(Settings.from_environment())
    settings = Settings(state_dir=tmp_path_factory.mktemp("state"), port=free_port())
    settings.make_directories()
    write_tiny_models(settings.models / "diffusers")
    command = [sys.executable, "-m", "bridge", "up", "--state-dir", str(settings.state_dir)]
    command += ["--port", str(settings.port), "--comfyui-dir", str(installation.root)]
    environment = {**os.environ, "NEUROLUX_DEFAULT_MODEL": DEFAULT_MODEL, "HF_HUB_OFFLINE": "1"}
    environment["HF_HOME"] = str(settings.state_dir / "huggingface")  # What this machine has downloaded is no concern.
    log = settings.logs / "up.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_ready(settings, process, log)
        runtime = running_service(settings)
        assert runtime, log.read_text()
        yield Service(settings, runtime.comfyui_url, runtime.nats_url)
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="session")
async def front_end(service: Service, request: pytest.FixtureRequest) -> AsyncIterator[Editor]:
    """The editor in the front end that a test names, opened once: a person leaves it open, too."""
    async with open_editor(service.comfyui_url, request.param) as opened:
        yield opened


@pytest.fixture
async def page(front_end: Editor) -> Page:
    """Its page, without the notices of earlier tests."""
    await front_end.page.evaluate("() => app.extensionManager.toast.removeAll?.()")
    return front_end.page


@pytest.fixture
def client(service: Service) -> Iterator[ImageGenClient]:
    with ImageGenClient(service.url) as opened:
        yield opened


@pytest.fixture
def imagegen(service: Service, tmp_path: Path):
    """Run the `imagegen` command against the service, in an empty folder."""

    def run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "bridge",
            *arguments,
            "--state-dir",
            str(service.settings.state_dir),
        ]
        root = Path(__file__).parents[2]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
