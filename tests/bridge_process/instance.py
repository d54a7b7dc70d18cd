"""One `imagegen up`, as a test starts it: real supervisor, nats-server, worker and gateway, a stand-in for ComfyUI."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from bridge.service.children.comfyui import free_port
from bridge.service.status import Status, get_status
from bridge.settings import Settings
from tests.signals import take_sigint

STAND_IN = Path(__file__).parent / "stand_in"
CHILDREN = {"supervisor", "nats", "comfyui", "worker", "gateway"}


class Instance:
    """One `imagegen up` on a state directory and port of its own."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.port = free_port()
        self.log = state_dir.with_suffix(".out")
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "bridge", *arguments, "--state-dir", str(self.state_dir)]

    def up(self, *arguments: str, comfyui: bool = True, **env: str) -> subprocess.Popen[bytes]:
        command = self.command("up", "--port", str(self.port), *arguments)
        if comfyui:
            command += ["--comfyui-dir", str(STAND_IN)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("IMAGEGEN_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=clean | env, preexec_fn=take_sigint
            )
        return self.process

    def fails(self, *arguments: str, comfyui: bool = True, **env: str) -> str:
        """Start, expect exit code 1 without a traceback, and return what was printed."""
        assert self.up(*arguments, comfyui=comfyui, **env).wait(60) == 1
        assert "Traceback" not in self.output
        assert not self.status().running
        return self.output

    @property
    def output(self) -> str:
        return self.log.read_text()

    def status(self) -> Status:
        return get_status(Settings(state_dir=self.state_dir))

    def until(self, condition: Callable[[Status], bool], timeout_s: float = 40) -> Status:
        deadline = time.monotonic() + timeout_s
        while not condition(status := self.status()):
            assert time.monotonic() < deadline, (status, self.output)
            assert self.process is not None
            assert self.process.poll() is None, self.output
            time.sleep(0.1)
        return status

    def ready(self) -> Status:
        return self.until(lambda status: status.ready)

    def is_empty(self) -> bool:
        """No process has this state directory or port in its command line or environment."""
        for process in psutil.process_iter():
            try:
                texts = [*process.cmdline(), *process.environ().values()]
            except psutil.Error:
                continue
            if process.pid != os.getpid() and str(self.state_dir) in " ".join(texts):
                return False
        return True

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
