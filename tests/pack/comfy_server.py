"""A real ComfyUI with the node pack, and the little that a test needs to talk to it.

The bridge's client is not used here on purpose: these tests hold the pack to ComfyUI's own contract.
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket
from PIL import Image

from bridge.service.children.comfyui import DEFAULTS, free_port
from bridge.service.installer import existing_installation, find_installation
from bridge.settings import Settings

START_TIMEOUT_S = 240
RUN_TIMEOUT_S = 180
Graph = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """What became of a queued graph."""

    prompt_id: str
    outputs: Mapping[str, Any]
    status: str
    messages: list[Any]
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    previews: list[Image.Image] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    """Progress texts: (node, text)."""

    def message(self, kind: str) -> dict[str, Any]:
        """The data of the message called ``kind`` (execution_error, execution_interrupted, ...)."""
        return next(data for name, data in self.messages if name == kind)

    @property
    def error_class(self) -> str:
        """The class name of the exception that a node raised."""
        return self.message("execution_error")["exception_type"].rsplit(".", 1)[-1]

    @property
    def error_text(self) -> str:
        """Its text."""
        return self.message("execution_error")["exception_message"]


def comfyui_dir() -> Path:
    """The ComfyUI to test with."""
    return find_installation(Settings.from_environment()).root


class ComfyServer:
    """A running ComfyUI: HTTP and websocket, synchronously."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self.log = log

    def get(self, path: str) -> Any:
        """GET JSON."""
        with urllib.request.urlopen(self.url + path, timeout=RUN_TIMEOUT_S) as response:
            return json.load(response)

    def get_bytes(self, path: str) -> bytes:
        """GET bytes."""
        with urllib.request.urlopen(self.url + path, timeout=RUN_TIMEOUT_S) as response:
            return response.read()

    def post(self, path: str, body: Any) -> Any:
        """POST JSON; a 400 is returned like any other answer."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=RUN_TIMEOUT_S) as response:
                return json.loads(response.read() or b"{}")
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def queue(self, graph: Graph, client_id: str, workflow: dict[str, Any] | None = None) -> str:
        """Queue ``graph``; returns its prompt id, or fails with ComfyUI's reason."""
        body: dict[str, Any] = {"prompt": graph, "client_id": client_id, "prompt_id": str(uuid.uuid4())}
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        answer = self.post("/prompt", body)
        assert "prompt_id" in answer, json.dumps(answer)[:2000]
        assert not answer["node_errors"], json.dumps(answer)[:2000]
        return answer["prompt_id"]

    def run(self, graph: Graph, workflow: dict[str, Any] | None = None) -> Run:
        """Queue ``graph`` and wait for its end, success or not."""
        return self.wait(self.queue(graph, uuid.uuid4().hex, workflow))

    def wait(self, prompt_id: str) -> Run:
        """Wait until ``prompt_id`` is in the history."""
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                status = entry["status"]
                return Run(prompt_id, entry["outputs"], status["status_str"], status["messages"])
            time.sleep(0.05)
        raise TimeoutError(f"{prompt_id} did not end within {RUN_TIMEOUT_S} s; see {self.log}")

    def run_watched(self, graph: Graph, *, interrupt_at: int | None = None) -> Run:
        """Run ``graph`` with a websocket open: its events and previews; interrupt at a progress value, if given."""
        client_id = uuid.uuid4().hex
        address = self.url.replace("http", "ws", 1) + f"/ws?clientId={client_id}"
        events: list[tuple[str, dict[str, Any]]] = []
        previews: list[Image.Image] = []
        texts: list[tuple[str, str]] = []
        socket_ = websocket.create_connection(address, timeout=RUN_TIMEOUT_S)
        try:
            prompt_id = self.queue(graph, client_id)
            while True:
                frame = socket_.recv()
                if isinstance(frame, bytes):
                    kind, length = struct.unpack(">II", frame[:8])
                    if kind == 3:
                        texts.append((frame[8 : 8 + length].decode(), frame[8 + length :].decode()))
                        continue
                    assert kind == 1, f"unexpected binary frame {kind}"
                    previews.append(Image.open(io.BytesIO(frame[8:])).convert("RGB"))
                    continue
                message = json.loads(frame)
                data = message["data"]
                if data.get("prompt_id") != prompt_id:
                    continue
                events.append((message["type"], data))
                if message["type"] == "progress" and data["value"] == interrupt_at:
                    self.post("/interrupt", {"prompt_id": prompt_id})
                if message["type"] == "executing" and data["node"] is None:
                    break
        finally:
            socket_.close()
        done = self.wait(prompt_id)
        return Run(prompt_id, done.outputs, done.status, done.messages, events, previews, texts)

    def files(self, run: Run, node: str = "result") -> list[bytes]:
        """The files that a Result node saved."""
        assert run.status == "success", run.messages
        return [self.get_bytes("/view?" + urllib.parse.urlencode(image)) for image in run.outputs[node]["images"]]

    def images(self, run: Run, node: str = "result") -> list[Image.Image]:
        """The images that a Result node saved."""
        return [Image.open(io.BytesIO(data)) for data in self.files(run, node)]

    def models(self) -> dict[str, dict[str, Any]]:
        """GET /neurolux/models, its models by name."""
        return {model["name"]: model for model in self.get("/neurolux/models")["models"]}


@contextmanager
def running_comfyui(
    comfyui: Path, base: Path, custom_nodes: Path | None, environment: Mapping[str, str] | None = None
) -> Iterator[ComfyServer]:
    """Start ``comfyui`` on a free loopback port with ``base`` as its user's folder, and stop it afterwards."""
    for folder in ("models", "custom_nodes", "input", "output"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    port = free_port()
    log = base / "comfyui.log"
    python = existing_installation(comfyui, "named").python
    command = [
        str(python), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port),
        "--base-directory", str(base), "--database-url", "sqlite:///:memory:",
        "--preview-method", "auto", "--disable-auto-launch", "--disable-api-nodes",
    ]  # fmt: skip
    if custom_nodes is not None:
        paths = base / "extra_model_paths.yaml"
        paths.write_text(json.dumps({"neurolux": {"base_path": "/", "custom_nodes": str(custom_nodes)}}))
        command += ["--extra-model-paths-config", str(paths)]
    variables = {
        **os.environ,
        "HF_HOME": str(base / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        **DEFAULTS,
        **(environment or {}),
    }
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=comfyui, stdout=output, stderr=subprocess.STDOUT, env=variables)
        try:
            server = ComfyServer(f"http://127.0.0.1:{port}", log)
            wait_until_ready(server, process)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_ready(server: ComfyServer, process: subprocess.Popen[bytes]) -> None:
    """Until ComfyUI answers; fails with its log when it exits or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"ComfyUI exited with {process.returncode}:\n{server.log.read_text()[-3000:]}")
        try:
            server.get("/system_stats")
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"ComfyUI did not start within {START_TIMEOUT_S} s:\n{server.log.read_text()[-3000:]}")
