"""A ComfyUI that the bridge starts itself: its command line, when it is ready, and why it failed to start."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp

from bridge.comfyui.errors import ComfyUIError
from bridge.comfyui.pack import NODE_ROUTE, PACK_ROUTE, RESULT_NODE
from bridge.comfyui.token import token_headers
from bridge.service.children.child import ChildProcess
from bridge.service.children.keeper import exit_text
from bridge.service.children.start_log import ARGUMENTS_VARIABLE, last_error, remedy_for, why_the_pack_failed
from bridge.service.device import Device, find_device
from bridge.service.installer import Installation

READY_TIMEOUT_S = 300.0
"""For a first start on a slow disk: importing torch, transformers and diffusers reads thousands of files."""
POLL_S = 0.2


class ComfyUIStartFailed(ComfyUIError):
    """ComfyUI did not start. The message is one line with the cause and the log file."""

    def __init__(self, cause: str, log_file: Path, log_tail: str = "") -> None:
        self.cause = cause
        self.log_file = log_file
        self.log_tail = log_tail
        super().__init__(f"{cause}; log: {log_file}")


def output_directory(base_directory: Path, env: Mapping[str, str] = os.environ) -> Path | None:
    """The folder where a ManagedComfyUI saves results; None if arguments of the user may change it."""
    # argparse accepts abbreviations too.
    own = [argument for argument in _extra_arguments(env) if argument.startswith(("--ou", "--ba"))]
    return None if own else base_directory / "output"


def _extra_arguments(env: Mapping[str, str]) -> list[str]:
    return shlex.split(env.get(ARGUMENTS_VARIABLE, ""))


class ManagedComfyUI:
    """A child ComfyUI on a loopback port. Use `start`, `wait_ready`, …, `stop`; `start` again after it has ended.

    `require_pack`: it is ready only when the NeuroLux nodes are loaded too.
    """

    def __init__(
        self,
        installation: Installation,
        *,
        base_directory: Path,
        extra_model_paths: Path | None,
        log_file: Path,
        port: int | None = None,
        extra_arguments: Sequence[str] | None = None,
        require_pack: bool = True,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        self.installation = installation
        self.base_directory = base_directory
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.device: Device = find_device(installation.python)
        self._require_pack = require_pack
        self._env = {**DEFAULTS, **env, **ENVIRONMENT}
        if extra_arguments is None:
            extra_arguments = _extra_arguments(env)
        self.child = ChildProcess(
            "comfyui",
            self._command(base_directory, extra_model_paths, extra_arguments),
            log_file=log_file,
            env=self._env,
            cwd=installation.root,
        )

    @property
    def pid(self) -> int | None:
        return self.child.pid

    async def start(self) -> None:
        await self.child.start()

    async def wait(self) -> int:
        """Wait until the process ended; its return code."""
        return await self.child.wait()

    async def stop(self, grace_s: float = 5.0) -> None:
        await self.child.stop(grace_s)

    async def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until ComfyUI answers and the pack is loaded. Raises ComfyUIStartFailed."""
        try:
            headers = token_headers(self._env)
            async with asyncio.timeout(timeout_s), aiohttp.ClientSession(headers=headers) as session:
                while await self._status(session, "/system_stats") != 200:
                    if self.child.returncode is not None:
                        raise self._ended()
                    await asyncio.sleep(POLL_S)
                if self._require_pack:
                    if (status := await self._status(session, PACK_ROUTE)) != 200:
                        raise self._no_pack(f"{PACK_ROUTE} answers HTTP {status}")
                    if not await has_nodes(session, self.url):
                        raise self._no_pack(f"ComfyUI has no node {RESULT_NODE}")
        except TimeoutError:
            raise ComfyUIStartFailed(f"ComfyUI did not answer within {timeout_s:g} s", self.child.log_file) from None

    async def answers(self) -> bool:
        """Whether it answers any request at all."""
        async with aiohttp.ClientSession() as session:
            return await self._status(session, "/system_stats") is not None

    async def _status(self, session: aiohttp.ClientSession, path: str) -> int | None:
        try:
            async with session.get(self.url + path, timeout=aiohttp.ClientTimeout(total=10)) as response:
                await response.read()
                return response.status
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    def _ended(self) -> ComfyUIStartFailed:
        assert self.child.returncode is not None
        cause = f"ComfyUI ended at start-up with {exit_text(self.child.returncode)}: "
        if error := last_error(self.child.log_tail(1000)):
            cause += error[:200]
            if remedy := remedy_for(error):
                cause += f" ({remedy})"
        elif last := self.child.log_tail(1).strip():
            cause += f"its log has no error; the last line is {last[:200]!r}"
        else:
            cause += "it wrote nothing"
        return ComfyUIStartFailed(cause, self.child.log_file, self.child.log_tail(40))

    def _no_pack(self, sign: str) -> ComfyUIStartFailed:
        reason = (why_the_pack_failed(self.child.log_tail(1000)) or sign)[:200]
        cause = f"ComfyUI runs, but NeuroLux's node pack did not load: {reason}"
        if "No module named" in reason:
            cause += f" (install it for {self.installation.python})"
        return ComfyUIStartFailed(cause, self.child.log_file, self.child.log_tail(40))

    def _command(self, base: Path, extra_model_paths: Path | None, extra: Sequence[str]) -> list[str]:
        command = [str(self.installation.python), str(self.installation.root / "main.py")]
        command += ["--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(base)]
        command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch", "--preview-method", "auto"]
        if extra_model_paths is not None:
            command += ["--extra-model-paths-config", str(extra_model_paths)]
        if self.device.kind == "cpu" and "--cpu" not in extra:
            command.append("--cpu")
        return [*command, *extra]


async def has_nodes(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether the ComfyUI at `url` has the pack's nodes."""
    try:
        async with session.get(url + NODE_ROUTE, timeout=aiohttp.ClientTimeout(total=10)) as response:
            return response.status == 200 and RESULT_NODE in await response.json()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return False


DEFAULTS = {
    # On a shared CPU, threads that spin while they wait make a step up to ten times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
}
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONUNBUFFERED": "1",  # its last lines must reach the log
}


def free_port() -> int:
    """A loopback port that is free now. Another program may take it before it is used, so be ready to retry."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
