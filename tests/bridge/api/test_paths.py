"""No name in a request becomes a path of this machine: a file is answered only if it is one of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from tests.bridge.gateway_process import BODY, GatewayProcess, ModelsThread, running_gateway
from tests.bridge.graphs import chosen
from tests.bridge.house import write_mode

PREFIX = "test.paths"
SECRET = "the secret of the house"
IMAGE = {"7": chosen("image", "image")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with a mode that takes an image, and secrets beside and above its modes."""
    root = tmp_path_factory.mktemp("paths")
    state = root / "state"
    write_mode(state / "workflows", "paint", IMAGE)
    for place in (root, state, state / "workflows" / "api"):
        (place / "secret.json").write_text(json.dumps({"title": SECRET}))
        (place / "secret.txt").write_text(SECRET)
    return root


@pytest.fixture(scope="module")
def gateway(nats_url: str, folder: Path) -> Iterator[GatewayProcess]:
    with running_gateway(nats_url, folder / "state", "--max-pending", "20", prefix=PREFIX) as running:
        yield running


@pytest.fixture(scope="module")
def models(nats_url: str, gateway: GatewayProcess) -> Iterator[ModelsThread]:
    opened = ModelsThread(nats_url, gateway.names)
    yield opened
    opened.close()


def names(folder: Path) -> list[str]:
    """Names that lead out of a folder, as different libraries would read them."""
    return [
        "../secret",
        "api/secret",
        "..%2fsecret",
        "../../secret.txt",
        "..\\secret",
        "....//secret",
        str(folder / "secret"),
        f"file://{folder}/secret.json",
        "/etc/passwd",
        "paint/../../secret",
        "paint\0.json",
        "secret\n",
        "~/secret",
        "CON",
        ".",
        "..",
        "",
        "*",
        ">",
        "a.b.>",
    ]


def told_nothing(gateway: GatewayProcess, answer: Any) -> None:
    assert SECRET not in answer.text
    assert "root:" not in answer.text
    assert answer.status_code in (400, 404, 405, 422), (answer.status_code, answer.text)


def test_names_of_modes_and_models_are_looked_up_and_never_opened(
    gateway: GatewayProcess, models: ModelsThread, folder: Path
) -> None:
    for name in names(folder):
        for path in (f"/v1/modes/{quote(name, safe='')}", f"/v1/modes/{quote(name)}"):
            if name not in ("", ".", "*"):
                told_nothing(gateway, gateway.get(path))
            told_nothing(gateway, gateway.post(path, json={"prompt": "a cat"}))
        if name:
            told_nothing(gateway, gateway.post("/v1/jobs", json={**BODY, "mode": name}))
            told_nothing(gateway, gateway.post("/v1/jobs", json={**BODY, "model": name}))
            told_nothing(gateway, gateway.post(f"/v1/load-model?model_name={quote(name, safe='')}"))
            assert models.ask({**BODY, "mode": name})["error"]["code"] == "unknown_mode", name


@pytest.mark.parametrize("suffix", ["\n", "%0a", "\0", "/../..", ".json", ">", " "])
def test_a_job_id_is_a_uuid_and_nothing_more(gateway: GatewayProcess, models: ModelsThread, suffix: str) -> None:
    """It becomes a subject of NATS and a key of its store."""
    job_id = quote(f"{uuid4()}{suffix}", safe="")
    for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/images/0", f"/v1/jobs/{job_id}/events"):
        answer = gateway.get(path)
        assert answer.status_code == 404
        assert "is not a job id" in answer.text
    assert gateway.post("/v1/jobs", json={**BODY, "job_id": f"{uuid4()}{suffix}"}).status_code == 422


@pytest.mark.parametrize("index", ["-1", "..", "0%2f..%2f..", "1e3", "%00", "٣"])
def test_an_image_is_counted_and_not_named(gateway: GatewayProcess, index: str) -> None:
    told_nothing(gateway, gateway.get(f"/v1/jobs/{uuid4()}/images/{index}"))


def test_an_image_of_a_request_is_its_bytes_and_no_name(
    gateway: GatewayProcess, models: ModelsThread, folder: Path
) -> None:
    request = {"prompt": "a cat", "mode": "paint"}
    for name in [*names(folder), "example.png", "secret.png [output]", "job:../../secret/0", "data:;base64,../secret"]:
        answer = gateway.post("/v1/jobs", json={**request, "image": name})
        assert answer.status_code == 422, (name, answer.text)
        assert SECRET not in answer.text
        files = {"image": (name or "x", b"not an image", "image/png")}
        assert gateway.post("/v1/jobs", data=request, files=files).status_code in (400, 422)
    for url in ("http://127.0.0.1/secret.png", f"file://{folder}/secret.txt"):
        assert gateway.post("/v1/jobs", json={**request, "image": url}).status_code == 422


@pytest.mark.parametrize(
    "path",
    ["/docs/assets/../../secret.txt", "/docs/assets/%2e%2e/%2e%2e/secret.txt", "/docs/assets/..%2f..%2fsecret.txt",
     "/docs/assets//etc/passwd", "/docs/assets/%2fetc%2fpasswd", "/docs/assets/", "/docs/../secret.txt",
     "/docs/assets/..%5c..%5csecret.txt", "/docs/assets/\x00"],
)  # fmt: skip
def test_the_pages_files_are_all_that_is_served(gateway: GatewayProcess, path: str) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    answer = gateway.raw(head)
    assert answer.split()[1] in (b"400", b"403", b"404"), answer
    assert SECRET.encode() not in answer
    assert b"root:" not in answer


def test_values_of_headers_open_nothing(gateway: GatewayProcess, folder: Path) -> None:
    for name in ("X-Request-Id", "Idempotency-Key", "If-None-Match", "Range", "Last-Event-ID", "X-Original-URL",
                 "X-Rewrite-URL", "Prefer", "Authorization", "Cookie"):  # fmt: skip
        value = str(folder / "secret.txt")
        answer = gateway.get("/v1/modes", headers={name: f"../../secret.txt;{value}"})
        assert answer.status_code == 200
        assert SECRET not in answer.text
        assert SECRET not in str(answer.headers)
