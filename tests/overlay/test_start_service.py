"""The banner's Start button: the real service, started by the overlay, which recovers by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from bridge.service.children.comfyui import free_port
from bridge.service.runtime import running_service
from bridge.settings import Settings
from tests.overlay.conftest import OwnService, RunningOverlay
from tests.overlay.desktop import eventually

WAIT_S = 120


def test_start_starts_the_service_and_the_overlay_draws(
    run_overlay: Callable[..., AbstractContextManager[RunningOverlay]], own_service: OwnService, tmp_path: Path
) -> None:
    settings = Settings(state_dir=tmp_path / "state", port=free_port(), comfyui_url=own_service.settings.comfyui_url)
    variables = {
        "IMAGEGEN_URL": "",
        "IMAGEGEN_STATE_DIR": str(settings.state_dir),
        "IMAGEGEN_PORT": str(settings.port),
        "IMAGEGEN_COMFYUI_URL": str(settings.comfyui_url),
    }
    try:
        with run_overlay(variables) as overlay:
            person = overlay.person
            overlay.call("--generate", "red heart")
            person.find(f"The image service is not running. Nothing answers at {settings.url}", "label")
            person.press("Start")
            person.find("The image service is starting", "label")
            assert person.see("Start", "push button") is None
            eventually(lambda: person.see("The image service", "label") is None, "the banner goes away", WAIT_S)
            person.find("Save", "push button", WAIT_S)
            person.find("red heart", "push button")
        assert running_service(settings), "the service outlives the overlay"
    finally:
        service = running_service(settings)
        if service is not None:
            os.kill(service.pids["supervisor"], signal.SIGTERM)
            eventually(lambda: running_service(settings) is None, "the service has ended")
