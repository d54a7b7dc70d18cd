"""What HTTP itself allows and forbids: every refusal is short, has its own status and comes in the error envelope."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import websocket

from tests.bridge.gateway_process import BODY, GatewayProcess, ModelsThread, running_gateway

PREFIX = "test.http"
UNKNOWN = "0d4c1d3a-3a3d-4b9f-8a51-0b2f3c4d5e6f"
DATA = json.dumps(BODY).encode()


@pytest.fixture(scope="module")
def gateway(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    options = ("--max-pending", "10000", "--allowed-hosts", "images.example.org", "--max-image-bytes", "1000000")
    options = (*options, "--max-file-bytes", "1000000")
    with running_gateway(nats_url, tmp_path_factory.mktemp("http"), *options, prefix=PREFIX) as running:
        models = ModelsThread(nats_url, running.names)
        yield running
        models.close()


@pytest.fixture(scope="module")
def job_id(gateway: GatewayProcess) -> str:
    return gateway.post("/v1/jobs", json=BODY).json()["job_id"]


def raw(gateway: GatewayProcess, start: bytes, *headers: bytes, body: bytes = b"", host: bool = True) -> bytes:
    """One request, byte by byte, and all that comes back until the connection ends."""
    lines = [start, *([b"Host: 127.0.0.1"] if host else []), *headers, b"Connection: close", b"", body]
    return gateway.raw(b"\r\n".join(lines))


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), {n.lower(): v for n, _, v in (line.partition(": ") for line in lines)}, body


POST = b"POST /v1/jobs HTTP/1.1"
TYPE = b"Content-Type: application/json"
LENGTH = b"Content-Length: %d" % len(DATA)


@pytest.mark.parametrize(
    ("status", "code", "start", "headers", "body"),
    [
        (415, "unsupported_media_type", POST, [TYPE, LENGTH, b"Content-Encoding: br"], DATA),
        (415, "unsupported_media_type", POST, [TYPE, LENGTH, b"Content-Encoding: zstd"], DATA),
        (415, "unsupported_media_type", POST, [TYPE, LENGTH, b"Content-Encoding: rot13"], DATA),
        (415, "unsupported_media_type", POST, [TYPE, LENGTH, b"Content-Encoding: gzip, br"], DATA),
        (400, "bad_request", POST, [TYPE, LENGTH, b"Content-Encoding: gzip"], DATA),
        (400, "bad_request", POST, [TYPE, LENGTH, b"Content-Encoding: deflate"], DATA),
        (417, "expectation_failed", POST, [TYPE, LENGTH, b"Expect: the-moon"], DATA),
        (417, "expectation_failed", b"POST /nowhere HTTP/1.1", [LENGTH, b"Expect: the-moon"], DATA),
        (414, "uri_too_long", b"GET /v1/jobs?cursor=" + b"x" * 9000 + b" HTTP/1.1", [], b""),
        (414, "uri_too_long", b"GET /" + b"x" * 900_000 + b" HTTP/1.1", [], b""),
        (431, "headers_too_large", b"GET /healthz HTTP/1.1", [b"X-A: " + b"/" * 9000], b""),
        (431, "headers_too_large", b"GET /healthz HTTP/1.1", [b"X" * 9000 + b": a"], b""),
        (431, "headers_too_large", b"GET /healthz HTTP/1.1", [b"X-A: a"] * 500, b""),
        (400, "bad_request", b"G@T /healthz HTTP/1.1", [], b""),
        (400, "bad_request", b"hello there", [], b""),
        (400, "bad_request", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [], b""),
        (400, "bad_request", b"GET /healthz HTTP/9.9", [], b""),
        (400, "bad_request", b"GET /\xff\xfe HTTP/1.1", [], b""),
        (400, "bad_request", b"GET http://[bad/ HTTP/1.1", [], b""),
        (400, "bad_request", b"GET /healthz HTTP/1.1", [b"X A: a"], b""),
        (400, "bad_request", b"GET /healthz HTTP/1.1", [b"X-A: a\0b"], b""),
        (400, "bad_request", POST, [b"Content-Length: x"], b""),
        (400, "bad_request", POST, [b"Content-Length: 3", b"Content-Length: 4"], b"abcd"),
        (400, "bad_request", POST, [b"Content-Length: 3", b"Transfer-Encoding: chunked"], b"0\r\n\r\n"),
        (400, "bad_request", POST, [TYPE, b"Transfer-Encoding: chunked"], b"zz\r\nabc\r\n"),
        (400, "bad_form", POST, [b"Content-Type: multipart/form-data", LENGTH], DATA),
        (405, "method_not_allowed", b"PUT /v1/jobs HTTP/1.1", [], b""),
        (405, "method_not_allowed", b"POST /healthz HTTP/1.1", [], b""),
        (404, "not_found", b"GET /nowhere HTTP/1.1", [], b""),
        (404, "not_found", b"GET /" + b"x" * 8000 + b" HTTP/1.1", [], b""),
        (404, "not_found", b"OPTIONS * HTTP/1.1", [], b""),
        (403, "foreign_origin", b"GET /v1/modes HTTP/1.1", [b"Origin: http://\xff\xfe"], b""),
        (415, "unsupported_media_type", POST, [b"Content-Type: \xff", LENGTH], DATA),
        (415, "unsupported_media_type", POST, [TYPE, LENGTH, b"Content-Encoding: \xff"], DATA),
        (400, "bad_request", POST, [TYPE, LENGTH, b"Expect: \xff"], DATA),
        (404, "unknown_job", b"HEAD /v1/jobs/" + UNKNOWN.encode() + b"/events HTTP/1.1", [], b""),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_every_refusal_is_in_the_envelope(
    gateway: GatewayProcess, status: int, code: str, start: bytes, headers: list[bytes], body: bytes
) -> None:
    told, fields, content = parsed(raw(gateway, start, *headers, body=body))
    assert told == status, content
    assert fields["content-type"].startswith("application/json")
    if not start.startswith(b"HEAD"):
        assert len(content) < 600
        error = json.loads(content)["error"]
        assert (error["code"], set(error)) == (code, {"code", "message", "field", "details"})


def test_no_refusal_is_logged_as_a_failure(gateway: GatewayProcess) -> None:
    assert gateway.post("/v1/jobs", json=BODY).status_code == 202
    assert not [line for line in gateway.lines() if line["level"] in ("error", "warning")]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity", "GZIP"])
def test_compressed_bodies_are_read(gateway: GatewayProcess, encoding: str) -> None:
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding.lower(), bytes)
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    assert gateway.post("/v1/jobs", data=pack(DATA), headers=headers).status_code == 202


def test_a_bomb_is_too_large(gateway: GatewayProcess) -> None:
    bomb = gzip.compress(b'{"prompt": "' + b"a" * 20_000_000 + b'"}', 1)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = gateway.post("/v1/jobs", data=bomb, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


# -- HEAD ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/jobs/{job}/events", "/v1/jobs/{job}", "/v1/jobs", "/v1/modes", "/v1/modes/text-to-image", "/v1/workers"),
        *("/v1/model-info", "/metrics", "/openapi.json", "/docs", "/docs/start.js", "/healthz", "/readyz"),
        "/docs/assets/swagger-ui.css",
    ],
)
def test_head_answers_with_headers_alone_and_the_connection_goes_on(
    gateway: GatewayProcess, job_id: str, path: str
) -> None:
    path = path.format(job=job_id)
    head = f"HEAD {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    both = gateway.raw(head + b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", timeout=5)
    status, fields, rest = parsed(both)
    assert status == 200
    assert parsed(rest)[0] == 200, rest[:200]
    assert parsed(rest)[2] == b'{"status": "ok"}'
    if path.endswith("/events"):
        assert fields["content-type"].startswith("text/event-stream")
    else:
        assert fields["content-type"] == gateway.get(path).headers["Content-Type"]


# -- queries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "field", "said"),
    [
        ("since=1785000000000", "since", "out of bounds: from 0 to 32503680000, in seconds"),
        ("since=-1", "since", "out of bounds"),
        ("until=nan", "until", "neither seconds"),
        ("until=inf", "until", "neither seconds"),
        ("since=1_0", "since", "neither seconds"),
        ("since=１", "since", "neither seconds"),
        ("since=yesterday", "since", "neither seconds"),
        ("since=", "since", "empty"),
        ("state=done", "state", "no query parameter 'state' here; this endpoint takes status"),
        ("status=finished", "status", "not one of queued"),
        ("status=done&status=failed", "status", "given 2 times"),
        ("status=", "status", "empty"),
        ("limit=0", "limit", "from 1 to 200"),
        ("limit=201", "limit", "from 1 to 200"),
        ("limit=1e2", "limit", "whole number"),
        ("limit=%2B5", "limit", "whole number"),
        ("limit=" + "9" * 4000, "limit", "limit"),
        ("cursor=abc", "cursor", "not the next_cursor of a page"),
        ("cursor=" + "x" * 4000, "cursor", "not the next_cursor"),
        ("cursor=1_" + UNKNOWN + "%0A", "cursor", "not the next_cursor"),
        ("mode=" + "x" * 300, "mode", "too long"),
        ("mode=", "mode", "empty"),
        ("Limit=5", "Limit", "no query parameter"),
        ("%00=5", "\0", "no query parameter"),
        ("&".join(f"f{number}=1" for number in range(900)), "f0", "no query parameter"),
    ],
    ids=lambda text: ascii(text[:30]),
)
def test_queries_are_checked_like_bodies(gateway: GatewayProcess, query: str, field: str, said: str) -> None:
    answer = gateway.get(f"/v1/jobs?{query}")
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["field"]) == ("invalid_request", field)
    assert said in error["message"]
    assert len(answer.content) < 6000


@pytest.mark.parametrize(
    "query",
    [
        *("since=0", "since=1785000000.5", "since=2026-01-31T12:00:00Z", "since=2026-01-31T12:00:00+01:00"),
        *("until=2026-01-31", "status=done&mode=paint&model=x&limit=1", "limit=200", f"cursor=1.5_{UNKNOWN}", ""),
    ],
)
def test_good_queries_are_answered(gateway: GatewayProcess, query: str) -> None:
    assert gateway.get(f"/v1/jobs?{query}").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("GET", "/v1/modes?x=1", "x"),
        ("GET", "/v1/jobs/{job}?x=1", "x"),
        ("DELETE", "/v1/jobs/{job}?force=1", "force"),
        ("GET", "/v1/jobs/{job}/events?previews=perhaps", "previews"),
        ("GET", "/v1/jobs/{job}/events?previews=true&previews=false", "previews"),
        ("POST", "/v1/jobs?mode=paint", "mode"),
        ("POST", "/v1/load-model", "model_name"),
        ("POST", "/v1/load-model?model_name=", "model_name"),
        ("GET", "/v1/models/x/plan?width=abc", "width"),
        ("GET", "/v1/models/x/plan?vram=lots", "vram"),
        ("GET", "/v1/models/x/plan?bf16=perhaps", "bf16"),
        ("GET", "/v1/models/x/plan?offload=moon", "offload"),
    ],
)
def test_every_endpoint_checks_its_query(
    gateway: GatewayProcess, job_id: str, method: str, path: str, field: str
) -> None:
    answer = getattr(gateway, method.lower())(path.format(job=job_id)) if method != "DELETE" else None
    if answer is None:
        start = f"DELETE {path.format(job=job_id)} HTTP/1.1".encode()
        status, _, content = parsed(raw(gateway, start))
        assert (status, json.loads(content)["error"]["field"]) == (422, field)
    else:
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field), answer.text


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/docs", "/openapi.json", "/metrics"])
def test_probes_and_pages_ignore_what_is_added(gateway: GatewayProcess, path: str) -> None:
    assert gateway.get(f"{path}?_=1785000000").status_code == 200


@pytest.mark.parametrize("flag", ["true", "True", "1", "false", "False", "0"])
def test_a_flag_is_written_as_json_or_python_does(gateway: GatewayProcess, job_id: str, flag: str) -> None:
    start = f"HEAD /v1/jobs/{job_id}/events?previews={flag} HTTP/1.1".encode()
    assert parsed(raw(gateway, start))[0] == 200


def test_two_keys_are_refused_and_several_preferences_are_one_list(gateway: GatewayProcess) -> None:
    keys = [TYPE, LENGTH, b"Idempotency-Key: a", b"Idempotency-Key: b"]
    status, _, content = parsed(raw(gateway, POST, *keys, body=DATA))
    assert (status, json.loads(content)["error"]["field"]) == (422, "Idempotency-Key")
    start = b"POST /v1/modes/text-to-image HTTP/1.1"
    preferences = [TYPE, LENGTH, b"Prefer: wait=100", b"Prefer: handling=strict, Respond-Async; x=y"]
    status, headers, content = parsed(raw(gateway, start, *preferences, body=DATA))
    assert (status, headers["preference-applied"]) == (202, "respond-async"), content


# -- who leaves ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "begin"),
    [
        (b"Content-Type: application/json\r\nContent-Length: 900", b'{"prompt": "'),
        (b"Content-Type: application/json\r\nTransfer-Encoding: chunked", b'c\r\n{"pro'),
        (
            b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 900",
            b"--x\r\nContent-Disposition: form-da",
        ),
        (
            b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 900",
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na ca',
        ),
        (
            b"Content-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 900",
            gzip.compress(DATA, mtime=0)[:30],
        ),
    ],
)
@pytest.mark.parametrize("rudely", [False, True], ids=["closed", "reset"])
def test_a_client_that_leaves_in_mid_body_is_no_failure(
    gateway: GatewayProcess, header: bytes, begin: bytes, rudely: bool
) -> None:
    request_id = f"leaves-{time.monotonic_ns()}"
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        identity = b"X-Request-Id: " + request_id.encode()
        connection.sendall(b"\r\n".join([POST, b"Host: 127.0.0.1", identity, header, b"", begin]))
        time.sleep(0.1)
        if rudely:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line = gateway.line(request_id=request_id)
    assert (line["status"], line["level"]) == (499, "info"), line
    assert "exception" not in line


# -- events of an unknown job ----------------------------------------------------------------------------------------


def test_a_websocket_for_an_unknown_job_says_so_at_once_and_waits_for_it(gateway: GatewayProcess) -> None:
    job = "1d4c1d3a-3a3d-4b9f-8a51-0b2f3c4d5e6f"
    socket_url = gateway.url.replace("http", "ws") + f"/v1/jobs/{job}/events"
    connection = websocket.create_connection(socket_url, timeout=5)
    assert json.loads(connection.recv())["type"] == "unknown"
    gateway.post("/v1/jobs", json={**BODY, "job_id": job})
    assert json.loads(connection.recv())["type"] == "queued"
    connection.close()


# -- same origin -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost", "http://localhost", 200),
        ("localhost:80", "http://localhost", 200),
        ("localhost", "http://localhost:80", 200),
        ("localhost:443", "https://localhost", 200),
        ("localhost", "https://localhost:443", 200),
        ("LOCALHOST:443", "HTTPS://LocalHost", 200),
        ("localhost.:443", "https://localhost", 200),
        ("[::1]:80", "http://[::1]", 200),
        ("images.example.org", "https://images.example.org", 200),
        ("images.example.org:443", "https://images.example.org", 200),
        ("images.example.org:8005", "https://images.example.org:8005", 200),
        ("localhost:443", "http://localhost", 403),
        ("localhost:80", "https://localhost", 403),
        ("localhost:8005", "http://localhost", 403),
        ("localhost", "http://localhost:8005", 403),
        ("localhost:080x", "http://localhost", 403),
        ("localhost", "http://localhost@evil.example", 403),
        ("localhost", "http://localhost:80@evil.example", 403),
        ("localhost", "ftp://localhost", 403),
        ("localhost", "http://127.0.0.1", 403),
        ("localhost", "null", 403),
        ("localhost", "http://evil.example", 403),
    ],
)
def test_the_same_origin_counts_default_ports(gateway: GatewayProcess, host: str, origin: str, status: int) -> None:
    answer: Any = gateway.get("/v1/modes", headers={"Host": host, "Origin": origin})
    assert answer.status_code == status, answer.text
