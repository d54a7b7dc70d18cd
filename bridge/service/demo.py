"""`imagegen demo`: one image on whatever this machine has; starts the service for it when none runs."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

from bridge.service.children.child import ChildProcess
from bridge.service.children.comfyui import free_port
from bridge.service.errors import ServiceError
from bridge.service.status import Status, get_status
from bridge.settings import ENV_PREFIX, Settings

START_TIMEOUT_S = 600.0
"""A first start fetches ComfyUI, and its first import of torch reads gigabytes."""
STOP_GRACE_S = 15.0
POLL_S = 0.3

Say = Callable[[str], None]


async def run_demo(settings: Settings, prompt: str, *, model: str, out: Path | None, say: Say) -> int:
    """Generate one image with `imagegen generate`, which prints its path. Returns its exit code."""
    async with _service(settings, say) as url:
        arguments = [prompt, "--model", model, *(["--out", str(out)] if out else [])]
        env = {**os.environ, ENV_PREFIX + "STATE_DIR": str(settings.state_dir), ENV_PREFIX + "URL": url}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "bridge", "generate", *arguments, env=env
        )
        return await process.wait()


@asynccontextmanager
async def _service(settings: Settings, say: Say):
    """The URL of a ready service: of the one that runs on this state directory, or of one that ends with the demo."""
    status = await asyncio.to_thread(get_status, settings)
    if status.running:
        yield (await _until_ready(settings, None, say)).url
        return
    settings.logs.mkdir(parents=True, exist_ok=True)
    port = free_port()  # the default one may be taken by another instance
    child = ChildProcess(
        "service",
        [sys.executable, "-P", "-m", "bridge", "up", "--port", str(port), *_options(settings)],
        log_file=settings.logs / "service.log",
        env={**os.environ, **({ENV_PREFIX + "TOKEN": settings.token} if settings.token else {})},
    )
    say("starting the service, for this image only (`make up` keeps one running)")
    await child.start()
    try:
        yield (await _until_ready(settings, child, say)).url
    finally:
        await child.stop(STOP_GRACE_S)


def _options(settings: Settings) -> list[str]:
    options = ["--state-dir", str(settings.state_dir)]
    for name in ("comfyui_url", "comfyui_dir", "nats_url"):
        if (value := getattr(settings, name)) is not None:
            options += ["--" + name.replace("_", "-"), str(value)]
    return options


async def _until_ready(settings: Settings, child: ChildProcess | None, say: Say) -> Status:
    """Wait for readiness, telling what is waited for; raises ServiceError when it will not come."""
    deadline = time.monotonic() + START_TIMEOUT_S
    reported = ""
    while True:
        if child is not None and child.returncode is not None:
            lines = child.log_tail(3)
            raise ServiceError(lines or f"the service did not start; log: {child.log_file}")
        status = await asyncio.to_thread(get_status, settings)
        if status.ready:
            return status
        if status.message != reported and (child is None or status.running):
            reported = status.message
            say(f"waiting for the service: {reported}")
        if time.monotonic() > deadline:
            raise ServiceError(f"the service was not ready after {START_TIMEOUT_S:g} s: {status.message}")
        await asyncio.sleep(POLL_S)
