"""What /openapi.json promises, asked of the real service: whatever is sent, the answer is a declared one and no 5xx.

The service is a whole one (`imagegen up`) beside the ComfyUI of the other tests; its default mode is a graph that
draws an empty image.
schemathesis makes the requests: of right and of wrong data, and in sequences, where one answer's job is the next
request's. It is run as its own program, which is its documented interface, and asks the same in every run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.contract import DEFAULT_MODE
from bridge.service.children.comfyui import free_port
from bridge.settings import Settings
from tests.service.conftest import Service, wait_ready
from tests.service.trivial_mode import write_trivial_mode

EXAMPLES = 6
"""Of each endpoint in each phase; the phase of boundary values makes its own, and most of them."""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "positive_data_acceptance",
    "unsupported_method",
    "allow_header_conformance",
)
"""Not `use_after_free`: DELETE cancels a job, and its state stays."""
CONFIGURATION = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 304, 404, 409, 410, 416]

[[operations]]
include-path = "/v1/load-model"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 503]
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 503]

[[operations]]
include-path = "/v1/models/{model}/plan"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 422]

[[operations]]
include-path = "/v1/modes/{name}"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404, 422]
"""
"""Weights that are not here cannot be loaded without a network: a 503 that says so is the right answer. Names of jobs,
modes, models and adapters may fit their patterns and not exist. What a mode takes is told by its own path."""
HOOKS = """
from uuid import uuid4
import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    # The same key with another request is refused, as it must be.
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = str(uuid4())
"""
LEFT_OUT = rf"^/v1/modes/(?!({DEFAULT_MODE}|\{{name\}})$).+|^/v1/queue/pause$"
"""The shipped graphs would really draw, and behind a pause whoever waits for an image would wait for good."""


@pytest.fixture(scope="module")
def url(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    own = Settings(state_dir=tmp_path_factory.mktemp("state"), port=free_port())
    own.make_directories()
    write_trivial_mode(own.workflows, DEFAULT_MODE)
    command = [
        sys.executable,
        "-m",
        "bridge",
        "up",
        "--state-dir",
        str(own.state_dir),
        "--port",
        str(own.port),
    ]
    command += ["--comfyui-url", service.comfyui_url, "--max-pending", "1000"]
    log = own.logs / "up.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_ready(own, process, log)
        yield own.url
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.timeout(900)
def test_every_answer_is_declared_and_none_is_a_failure(url: str, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("st")
    command = [str(program), "run", url + "/openapi.json", "--checks", ",".join(CHECKS), "--no-color"]
    command += ["--max-examples", str(EXAMPLES), "--generation-deterministic", "--continue-on-failure"]
    # One thread: in two, Python 3.11's parser, which hypothesis uses, at times fails (python/cpython#106905).
    command += ["--request-timeout", "60", "--workers", "1", "--exclude-path-regex", LEFT_OUT]
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    (tmp_path / "hooks.py").write_text(HOOKS)
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=840, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    [selected, tested] = [int(re.search(rf"{word}: +(\d+)", run.stdout)[1]) for word in ("Selected", "Tested")]  # pyright: ignore
    assert tested == selected > 15
    cases = re.search(r"(\d+) generated", run.stdout)
    assert cases, run.stdout
    assert int(cases[1]) > 500
