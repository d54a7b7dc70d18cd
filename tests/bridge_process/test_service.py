"""`imagegen up` as a user runs it: real supervisor, nats-server, worker and gateway, and a stand-in for ComfyUI."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from bridge.service.comfyui import free_port
from bridge.service.keeper import MAX_DEATHS
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

    def until(self, condition: Callable[[Status], bool]) -> Status:
        deadline = time.monotonic() + 40
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


# -- refusals: one clear line, exit code 1 -------------------------------------------------------------------------


def test_a_port_in_use_is_named_with_the_option_that_changes_it(instance: Instance) -> None:
    with socket.create_server(("127.0.0.1", instance.port)):
        output = instance.fails()
    assert f"port {instance.port} on 127.0.0.1 is in use" in output
    assert "--port" in output
    assert len(output.splitlines()) == 1


def test_a_host_beyond_this_machine_needs_a_token(instance: Instance) -> None:
    output = instance.fails("--host", "0.0.0.0")
    assert "host 0.0.0.0 can be reached from other machines" in output
    assert "--token" in output


def test_a_directory_without_comfyui_is_refused(instance: Instance, tmp_path: Path) -> None:
    output = instance.fails("--comfyui-dir", str(tmp_path), comfyui=False)
    assert f"{tmp_path} is not a ComfyUI" in output
    output = instance.fails("--comfyui-dir", str(tmp_path / "gone"), comfyui=False)
    assert f"there is no directory {tmp_path / 'gone'}" in output


def test_a_comfyui_that_does_not_start_is_told_with_its_last_line_and_log(instance: Instance) -> None:
    output = instance.fails(STAND_IN_BROKEN="1").splitlines()[-1]
    assert "RuntimeError: the stand-in is broken" in output
    assert str(instance.state_dir / "logs" / "comfyui.log") in output
    assert instance.is_empty()


def test_a_comfyui_without_the_pack_is_refused(instance: Instance) -> None:
    output = instance.fails(STAND_IN_WITHOUT_PACK="1").splitlines()[-1]
    assert "node pack did not load" in output
    assert instance.is_empty()


def test_a_comfyui_whose_pack_answers_but_has_no_nodes_is_refused(instance: Instance) -> None:
    output = instance.fails(STAND_IN_WITHOUT_NODES="1").splitlines()[-1]
    assert "node pack did not load: No module named 'diffusers'" in output
    assert str(instance.state_dir / "logs" / "comfyui.log") in output


def test_a_nats_url_where_nothing_answers_is_refused(instance: Instance) -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    assert f"no NATS server answers at {url}" in instance.fails("--nats-url", url)


def test_a_comfyui_url_that_is_something_else_is_refused(instance: Instance) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 - http.server's own name
            self.send_error(404)

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        output = instance.fails("--comfyui-url", url, comfyui=False)
        server.shutdown()
    assert f"{url} is not a ComfyUI" in output


def test_a_bad_setting_is_named(instance: Instance) -> None:
    assert "IMAGEGEN_MAX_PENDING='many' is not a whole number" in instance.fails(IMAGEGEN_MAX_PENDING="many")
    assert "write http://127.0.0.1:1" in instance.fails("--comfyui-url", "127.0.0.1:1", comfyui=False)


# -- a life --------------------------------------------------------------------------------------------------------


def test_up_runs_everything_and_ctrl_c_leaves_nothing(instance: Instance) -> None:
    process = instance.up()
    status = instance.ready()
    assert set(status.pids) == CHILDREN
    assert status.url == f"http://127.0.0.1:{instance.port}"
    assert (instance.state_dir / "runtime.json").stat().st_mode & 0o777 == 0o600
    result = subprocess.run(instance.command("paths", "--json"), capture_output=True, check=True)
    paths = json.loads(result.stdout)
    assert set(paths) == {"state", "models", "workflows", "output", "logs"}
    assert all(Path(path).is_dir() for path in paths.values())
    process.send_signal(signal.SIGINT)
    assert process.wait(12) == 0
    assert not any(psutil.pid_exists(pid) for pid in status.pids.values())
    assert instance.is_empty()
    assert not (instance.state_dir / "runtime.json").exists()
    assert "Traceback" not in instance.output


def test_a_killed_supervisor_leaves_nothing_and_can_be_started_again(instance: Instance) -> None:
    process = instance.up()
    instance.ready()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while not instance.is_empty() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert instance.is_empty()
    assert not instance.status().running
    instance.up()
    instance.ready()


def test_every_killed_child_is_started_again_at_the_same_address(instance: Instance) -> None:
    instance.up()
    before = instance.ready()
    for name in sorted(CHILDREN - {"supervisor"}):
        os.kill(before.pids[name], signal.SIGKILL)
    after = instance.until(
        lambda status: (
            status.ready
            and set(status.pids) == CHILDREN
            and all(status.pids[name] != before.pids[name] for name in CHILDREN - {"supervisor"})
        )
    )
    for address in ("url", "comfyui_url", "nats_url"):
        assert getattr(after, address) == getattr(before, address)
    assert "comfyui ended with signal 9; restarting it" in instance.output


def test_a_child_that_keeps_dying_ends_the_service_with_its_last_lines(instance: Instance) -> None:
    assert instance.up(STAND_IN_LIFETIME_S="0.8").wait(60) == 1
    assert f"comfyui ended {MAX_DEATHS} times, last with code 7" in instance.output
    assert "the stand-in has not long to live" in instance.output
    assert "Traceback" not in instance.output
    assert instance.is_empty()


def test_instances_live_side_by_side_and_one_state_directory_has_one(instances: Callable[[str], Instance]) -> None:
    first, second = instances("first"), instances("second")
    first.up()
    second.up()
    one, two = first.ready(), second.ready()
    for address in ("url", "comfyui_url", "nats_url"):
        assert getattr(one, address) != getattr(two, address)
    rival = Instance(first.state_dir)
    rival.log = first.state_dir.with_suffix(".rival")
    assert rival.up().wait(20) == 1
    assert f"the service already runs at {one.url}" in rival.output
    first.end()
    assert second.status().ready


def test_the_worker_knows_where_its_comfyui_saves(instances: Callable[[str], Instance]) -> None:
    own, moved = instances("own"), instances("moved")
    own.up()
    moved.up(IMAGEGEN_COMFYUI_ARGS="--output-directory /elsewhere")
    command = psutil.Process(own.ready().pids["worker"]).cmdline()
    assert command[command.index("--comfyui-output-dir") + 1] == str(own.state_dir / "comfyui" / "output")
    assert "--comfyui-output-dir" not in psutil.Process(moved.ready().pids["worker"]).cmdline()


def test_an_external_comfyui_may_come_later(instance: Instance) -> None:
    port = free_port()
    instance.up("--comfyui-url", f"http://127.0.0.1:{port}", comfyui=False)
    status = instance.until(lambda status: "gateway" in status.pids)
    assert not status.ready
    with subprocess.Popen([sys.executable, str(STAND_IN / "main.py"), "--port", str(port)]) as comfyui:
        status = instance.ready()
        assert set(status.pids) == CHILDREN - {"comfyui"}
        comfyui.kill()


def test_the_token_is_in_no_command_line(instance: Instance) -> None:
    instance.up(IMAGEGEN_TOKEN="s3cret", IMAGEGEN_HOST="0.0.0.0")
    status = instance.ready()
    for pid in status.pids.values():
        assert "s3cret" not in " ".join(psutil.Process(pid).cmdline())
    assert "s3cret" not in (instance.state_dir / "runtime.json").read_text()


def test_status_is_one_of_three_exit_codes(instance: Instance) -> None:
    def ask() -> tuple[int, dict[str, Any]]:
        result = subprocess.run(instance.command("status", "--json"), capture_output=True, check=False)
        return result.returncode, json.loads(result.stdout)

    code, status = ask()
    assert (code, status["ready"], status["url"], status["pids"]) == (3, False, None, {})
    instance.up("--comfyui-url", f"http://127.0.0.1:{free_port()}", comfyui=False)
    instance.until(lambda status: "gateway" in status.pids)
    code, status = ask()
    assert (code, status["running"], status["ready"]) == (1, True, False)
    assert status["message"]
    instance.end()
    instance.up()
    instance.ready()
    code, status = ask()
    assert (code, status["ready"], set(status["pids"])) == (0, True, CHILDREN)
