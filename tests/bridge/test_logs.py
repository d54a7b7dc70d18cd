"""The log: one line for each request and each transition of a job, about the right ones, and nothing private in it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from pydantic import ValidationError

from bridge import logs
from bridge.api.app import make_app
from bridge.broker.jobs import log_transition
from bridge.contract import ErrorBody, Job, JobKind, JobState, JobStatus
from bridge.settings import Settings
from tests.bridge.gateway_process import BODY, GatewayProcess, models_of, running_gateway

PREFIX = "test.logs"
SMALL: dict[str, Any] = {"job_store_bytes": 16 * 2**20, "image_store_bytes": 64 * 2**20}
PROMPT = "a lighthouse that nobody should hear of"


@pytest.fixture(scope="module")
def gateway(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("logs")
    with running_gateway(nats_url, folder, "--max-pending", "4", prefix=PREFIX) as running:
        yield running


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Where the log of this process goes; `logs.configure` is undone afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


def configure(output: io.StringIO, **settings: Any) -> logging.Logger:
    logs.configure(Settings(**{"log_format": "json", **settings}), output)
    return logging.getLogger("bridge.test")


def failing(message: str) -> None:
    raise ValueError(message)


# -- a real gateway -----------------------------------------------------------------------------------------------


def test_a_request_is_one_line_with_the_id_that_its_answer_carries(gateway: GatewayProcess) -> None:
    job_id = str(uuid4())
    answer = gateway.get(f"/v1/jobs/{job_id}?secret=1")
    request_id = answer.headers["X-Request-Id"]
    line = gateway.line(request_id=request_id)
    assert line["message"] == "GET /v1/jobs/{job_id}"
    assert (line["route"], line["status"], line["job_id"]) == ("/v1/jobs/{job_id}", 422, job_id)
    assert line["client"] == "127.0.0.1"
    assert line["ms"] >= 0
    assert [each["request_id"] for each in gateway.lines()].count(request_id) == 1


def test_a_callers_request_id_is_kept_if_it_can_stand_in_a_line(gateway: GatewayProcess) -> None:
    assert gateway.get("/v1/modes", headers={"X-Request-Id": "trace-7.a_b"}).headers["X-Request-Id"] == "trace-7.a_b"
    for bad in ("x" * 65, 'a"b', "a b", "ä".encode().decode("latin-1"), ""):
        assert gateway.get("/v1/modes", headers={"X-Request-Id": bad}).headers["X-Request-Id"] != bad


async def test_every_transition_of_a_job_is_a_line_about_it(gateway: GatewayProcess, nats_url: str) -> None:
    async with models_of(nats_url, PREFIX) as nc:
        answer = await asyncio.to_thread(gateway.post, "/v1/jobs", json=BODY)
        job_id = answer.json()["job_id"]
        await asyncio.to_thread(requests.delete, f"{gateway.url}/v1/jobs/{job_id}", timeout=20)
        await nc.jetstream().purge_stream(gateway.names.stream)
    queued = gateway.line(job_id=job_id, message="job queued")
    assert (queued["mode"], queued["model"], queued["status"]) == ("text-to-image", "schnell", "queued")
    assert queued["request_id"] == answer.headers["X-Request-Id"]
    cancelled = gateway.line(job_id=job_id, message="job cancelled")
    assert cancelled["code"] == "cancelled"


async def test_prompts_are_neither_in_the_log_nor_in_headers(gateway: GatewayProcess, nats_url: str) -> None:
    body = BODY | {"prompt": PROMPT, "negative_prompt": f"no {PROMPT}"}
    async with models_of(nats_url, PREFIX) as nc:
        answers = [await asyncio.to_thread(gateway.post, "/v1/jobs", json=body)]
        answers.append(await asyncio.to_thread(gateway.post, "/v1/jobs", json=body | {"strength": PROMPT}))
        answers.append(await asyncio.to_thread(gateway.post, "/v1/jobs", json=body | {"model": PROMPT}))
        answers.append(await asyncio.to_thread(gateway.post, f"/v1/{PROMPT}?prompt={PROMPT}", json=body))
        answers.append(await asyncio.to_thread(gateway.post, "/v1/jobs", data=PROMPT.encode()))
        await nc.request(gateway.names.request, json.dumps(body | {"seed": PROMPT}).encode(), timeout=20)
        await nc.jetstream().purge_stream(gateway.names.stream)
    assert [answer.status_code for answer in answers] == [202, 422, 404, 404, 415]
    gateway.line(message="NATS request", code="invalid_request")
    assert "lighthouse" not in gateway.log.read_text()
    assert not any("lighthouse" in value for answer in answers for value in answer.headers.values())


async def test_an_error_that_nobody_foresaw_is_answered_with_the_id_of_its_lines(
    output: io.StringIO, nats_url: str, tmp_path: Path
) -> None:
    async def fail(request: web.Request) -> web.Response:
        logs.keep_private(await request.json())
        raise RuntimeError(f"cannot draw {PROMPT}")

    settings = Settings(state_dir=tmp_path, nats_prefix=PREFIX, max_pending=4, **SMALL)
    app = make_app(settings, nats_url)
    app.router.add_post("/fail", fail)
    async with TestClient(TestServer(app)) as client:
        configure(output)
        answer = await client.post("/fail", json={"prompt": PROMPT})
        assert answer.status == 500
        error = (await answer.json())["error"]
    assert error["code"] == "internal_error"
    request_id = answer.headers["X-Request-Id"]
    assert error["message"] == f"RuntimeError; the service's log has the details under request {request_id}"
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    [failure] = [line for line in lines if line["level"] == "error"]
    assert failure["request_id"] == request_id
    assert "Traceback" in failure["exception"]
    assert "lighthouse" not in output.getvalue()
    assert [line["status"] for line in lines if line["message"] == "POST /fail"] == [500]


# -- the formats ---------------------------------------------------------------------------------------------------


def test_a_json_line_is_one_object_whatever_is_in_it(output: io.StringIO) -> None:
    log = configure(output)
    with logs.about(request_id="r1"):
        log.info("two\nlines and \x1b[31m", extra=logs.fields(count=3, path=Path("/x")))
    [text] = output.getvalue().splitlines()
    line = json.loads(text)
    assert line["message"] == "two\nlines and \x1b[31m"
    assert (line["level"], line["logger"], line["request_id"], line["count"]) == ("info", "bridge.test", "r1", 3)
    assert line["time"].endswith("Z")


def test_a_human_line_is_one_line_and_says_nothing_twice(output: io.StringIO) -> None:
    log = configure(output, log_format="human")
    with logs.about(request_id="r1", job_id="j1"):
        log.info("GET /x", extra=logs.fields(method="GET", route="/x", status=200))
        log.warning("an attacker's\n2026-01-01 00:00:00.000 ERROR forged: line")
    first, second = output.getvalue().splitlines()
    assert first.endswith("INFO    test: GET /x (request_id r1, job_id j1, status 200)")
    assert "\\n2026-01-01" in second


def test_levels_are_heeded(output: io.StringIO) -> None:
    log = configure(output, log_level="warning")
    log.info("not told")
    log.warning("told")
    assert "not told" not in output.getvalue()
    assert "told" in output.getvalue()


def test_what_a_caller_wrote_is_left_out_of_messages_and_tracebacks(output: io.StringIO) -> None:
    log = configure(output)
    with logs.about(job_id="j1"):
        logs.keep_private({"prompt": PROMPT, "mode": "text-to-image", "nested": [{"style": "in oil, thickly"}]})
        try:
            failing(f"the node said: {PROMPT[:25]}… in text-to-image")
        except ValueError:
            log.exception("it failed in mode text-to-image")
        log.warning("style %r is unknown", "in oil, thickly")
    text = output.getvalue()
    assert "lighthouse" not in text
    assert "in oil" not in text
    assert "it failed in mode text-to-image" in text
    assert "test_logs.py" in text  # where it failed is told
    log.info("afterwards %s", PROMPT)
    assert PROMPT in output.getvalue()  # another request's texts are its own affair


def test_prompts_are_told_when_they_are_asked_for(output: io.StringIO) -> None:
    log = configure(output, log_prompts=True)
    with logs.about(job_id="j1"):
        logs.keep_private({"prompt": PROMPT})
        log.warning("unknown word in %r", PROMPT)
    assert PROMPT in output.getvalue()


@pytest.mark.parametrize("show", [True, False])
@pytest.mark.parametrize("log_format", ["json", "human"])
def test_secrets_are_never_told(output: io.StringIO, show: bool, log_format: str) -> None:
    log = configure(output, token='s3"cret', nats_password="hush hush", log_prompts=show, log_format=log_format)
    with logs.about(request_id='s3"cret'):
        log.info("hush hush %s", 's3"cret', extra=logs.fields(given='s3"cret'))
    assert "cret" not in output.getvalue()
    assert "hush" not in output.getvalue()


def test_other_libraries_lines_tell_no_more_than_their_first_line(output: io.StringIO) -> None:
    configure(output)
    try:
        failing(PROMPT)
    except ValueError:
        logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: %s", PROMPT, exc_info=True)
    line = json.loads(output.getvalue())
    assert line["message"] == "Task exception was never retrieved"
    assert line["exception"].startswith("ValueError")
    assert "lighthouse" not in output.getvalue()


def test_a_value_that_a_model_refuses_is_not_quoted(output: io.StringIO) -> None:
    """In a callback of NATS, say, where nobody knows which request it is about."""
    log = configure(output)
    try:
        try:
            Job.model_validate({"job_id": str(uuid4()), "kind": "generate", "mode": [PROMPT], "parameters": {}})
        except ValidationError as error:
            raise RuntimeError("outer") from error
    except RuntimeError:
        log.exception("NATS callback failed")
    assert "lighthouse" not in output.getvalue()
    assert "Job: mode: string_type, submitted_at: missing" in output.getvalue()
    assert "outer" in output.getvalue()


def test_a_failed_job_says_its_code_and_its_cause_without_its_prompt(output: io.StringIO) -> None:
    configure(output)
    job = Job(job_id=str(uuid4()), kind=JobKind.GENERATE, mode="m", parameters={"prompt": PROMPT}, submitted_at=1.0)
    state = JobState.queued(job).moved(JobStatus.FAILED, started_at=2.0, finished_at=5.5)
    for message in ("node 3 (Sample) failed: out of luck", f"node 3 cannot read {PROMPT}"):
        error = ErrorBody(code="node_failed", message=message)
        log_transition(state.model_copy(update={"error": error}))
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    assert lines[0]["message"] == "job failed"
    assert (lines[0]["code"], lines[0]["queue_ms"], lines[0]["run_ms"]) == ("node_failed", 1000.0, 3500.0)
    assert lines[1]["message"] == "cause: node 3 (Sample) failed: out of luck"
    assert lines[1]["job_id"] == job.job_id
    assert lines[3]["message"] == logs.HIDDEN
    assert "lighthouse" not in output.getvalue()


def test_a_long_prompt_does_not_slow_the_log_down(output: io.StringIO) -> None:
    """10,000 characters against a traceback of many lines: windows of the shorter of both are looked up."""
    log = configure(output)
    with logs.about(job_id="j1"):
        logs.keep_private({"prompt": "abc " * 2500})
        for _ in range(100):
            log.info("a line of usual length that holds nothing of the prompt, and so stays as it is")
    assert output.getvalue().count("stays as it is") == 100
