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
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from bridge.service.children.comfyui import free_port
from tests.bridge_process.instance import CHILDREN, STAND_IN, Instance

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
