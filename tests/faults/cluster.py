"""The service as separate processes that a test can kill one by one: nats-server, ComfyUI, workers, gateways.

ComfyUI is the real one, with the light pack of `comfyui_nodes`. Everything is started by the project's own commands.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import requests
import yaml

from bridge.client import ClientError, ImageGenClient
from bridge.contract import JobState
from bridge.service.children.comfyui import free_port
from bridge.service.installer import Installation
from bridge.service.nats import nats_server_program

HERE = Path(__file__).parent
START_TIMEOUT_S = 240
MODE = "work"
GRAPH: dict[str, Any] = {
    "1": {"class_type": "NeuroLuxTextParameter", "inputs": {"name": "prompt", "value": ""}},
    "2": {
        "class_type": "NeuroLuxIntegerParameter",
        "inputs": {"name": "steps", "value": 0, "minimum": 0, "maximum": 10000},
    },
    "3": {
        "class_type": "NeuroLuxIntegerParameter",
        "inputs": {"name": "color", "value": 0, "minimum": 0, "maximum": 2**53},
    },
    "4": {"class_type": "NeuroLuxTextParameter", "inputs": {"name": "fault", "value": ""}},
    "5": {"class_type": "NeuroLuxChoiceParameter", "inputs": {"name": "model", "value": "alpha", "choices": ""}},
    "6": {
        "class_type": "NeuroLuxTestWork",
        "_meta": {"title": "Work"},
        "inputs": {"steps": ["2", 0], "color": ["3", 0], "fault": ["4", 0], "model": ["5", 0]},
    },
    "7": {"class_type": "NeuroLuxResult", "inputs": {"images": ["6", 0], "filename_prefix": "work"}},
}


def until(condition: Callable[[], Any], timeout_s: float = 120) -> Any:
    """Wait until `condition` gives something true, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain"
        time.sleep(0.05)
    return value


class Process:
    """A program that is started, killed with SIGKILL, and started again."""

    def __init__(self, name: str, command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self.env = {**{k: v for k, v in os.environ.items() if not k.startswith("IMAGEGEN_")}, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=self.env, cwd=HERE.parents[1])

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()


class Cluster:
    """One nats-server, and as many of the others as a test adds."""

    def __init__(self, folder: Path, installation: Installation, **nats_config: Any) -> None:
        self.folder = folder
        self.installation = installation
        self.nats_port = free_port()
        self.nats_url = f"nats://127.0.0.1:{self.nats_port}"
        self.processes: dict[str, Process] = {}
        self.urls: dict[str, str] = {}
        self.options: list[str] = []
        self.secrets: dict[str, str] = {}
        api = folder / "workflows" / "api"
        api.mkdir(parents=True)
        (folder / "workflows" / f"{MODE}.json").write_text(json.dumps({"nodes": [], "links": []}))
        (api / f"{MODE}.json").write_text(json.dumps(GRAPH))
        config = {
            "host": "127.0.0.1",
            "port": self.nats_port,
            "jetstream": {"store_dir": str(folder / "nats"), **nats_config.pop("jetstream", {})},
            **nats_config,
        }
        (folder / "nats.conf").write_text(json.dumps(config))
        self._add("nats", [nats_server_program(), "-c", str(folder / "nats.conf")])

    def _add(self, name: str, command: list[str], **env: str) -> Process:
        process = self.processes[name] = Process(name, command, self.folder / f"{name}.log", env)
        process.start()
        return process

    def comfyui(self, name: str = "comfyui") -> str:
        """Start a ComfyUI; returns its URL."""
        base = self.folder / name
        for folder in ("models", "output", "input", "user", "custom_nodes"):
            (base / folder).mkdir(parents=True)
        paths = base / "paths.yaml"
        paths.write_text(yaml.safe_dump({"test": {"custom_nodes": str(HERE / "comfyui_nodes")}}))
        port = free_port()
        command = [str(self.installation.python), str(self.installation.root / "main.py"), "--cpu"]
        command += ["--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
        command += ["--database-url", "sqlite:///:memory:", "--extra-model-paths-config", str(paths)]
        command += ["--disable-api-nodes", "--preview-method", "auto"]
        self._add(name, command, OMP_WAIT_POLICY="PASSIVE", DO_NOT_TRACK="1", PYTHONUNBUFFERED="1")
        self.urls[name] = f"http://127.0.0.1:{port}"
        return self.urls[name]

    def stand_in(self, name: str = "comfyui") -> str:
        """Start a stand-in for ComfyUI; returns its URL."""
        port = free_port()
        output = self.folder / f"{name}-output"
        command = [sys.executable, str(HERE / "stand_in_comfyui.py"), "--port", str(port), "--output", str(output)]
        self._add(name, command)
        self.urls[name] = f"http://127.0.0.1:{port}"
        return self.urls[name]

    def runs(self, name: str = "comfyui") -> list[str]:
        """The ids of the jobs that a stand-in ran to a good end, as often as it did."""
        path = self.folder / f"{name}-output" / "runs"
        return path.read_text().split() if path.exists() else []

    def wait_comfyui(self, name: str = "comfyui") -> None:
        def answers() -> bool:
            try:
                return requests.get(self.urls[name] + "/neurolux/models", timeout=30).status_code == 200
            except requests.RequestException:
                return False

        until(answers, START_TIMEOUT_S)

    def wait_nats(self) -> None:
        def accepts() -> bool:
            try:
                socket.create_connection(("127.0.0.1", self.nats_port), timeout=1).close()
            except OSError:
                return False
            return True

        until(accepts)

    def worker(self, comfyui_url: str, name: str = "worker", *options: str) -> Process:
        command = self._imagegen("worker", "--comfyui-url", comfyui_url, *options)
        return self._add(name, command, IMAGEGEN_WORKER_ID=name, **self.secrets)

    def gateway(self, name: str = "gateway", *options: str) -> str:
        port = free_port()
        self.urls[name] = f"http://127.0.0.1:{port}"
        self._add(name, self._imagegen("gateway", "--port", str(port), *options), **self.secrets)
        return self.urls[name]

    def _imagegen(self, *arguments: str) -> list[str]:
        command = [sys.executable, "-m", "bridge", *arguments]
        return [*command, "--nats-url", self.nats_url, "--state-dir", str(self.folder), *self.options]

    def client(self, name: str = "gateway") -> ImageGenClient:
        return ImageGenClient(self.urls[name])

    def ready(self, name: str = "gateway", timeout_s: float = START_TIMEOUT_S) -> ImageGenClient:
        client = self.client(name)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                client.wait_ready(0)
                return client
            except ClientError:
                self.check()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def check(self) -> None:
        """Fail with the last words of a process that has ended by itself."""
        for process in self.processes.values():
            if process.process is not None and process.process.poll() not in (None, -signal.SIGKILL):
                raise AssertionError(f"{process.name} ended: {process.log.read_text()[-2000:]}")

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()


def submit(client: ImageGenClient, *, timeout_s: float = 60, **parameters: Any) -> str:
    """Submit a job of the test's mode, again while the service is away; returns its id."""
    job_id = str(uuid4())

    def accepted() -> bool:
        try:
            return client.submit("x", mode=MODE, job_id=job_id, **parameters).job_id == job_id
        except ClientError as error:
            return _must_be_away(error)

    until(accepted, timeout_s)
    return job_id


def _must_be_away(error: ClientError) -> bool:
    if error.status not in (0, 503, 504):
        raise error
    return False


def ended(client: ImageGenClient, job_id: str, timeout_s: float = 240) -> JobState:
    """Wait for the end of a job, whatever happens to the service meanwhile. An accepted job is never unknown."""

    def final() -> JobState | bool:
        try:
            state = client.job(job_id)
        except ClientError as error:
            return _must_be_away(error)
        return state if state.status.final else False

    return until(final, timeout_s)


def running(client: ImageGenClient, job_id: str) -> None:
    """Wait until a job runs."""
    until(lambda: client.job(job_id).status == "running")


def make_image(client: ImageGenClient, job_id: str) -> bytes:
    """The first image of a job."""
    answer = requests.get(f"{client.url}/v1/jobs/{job_id}/images/0", timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.content
