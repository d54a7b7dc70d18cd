"""The description says all that there is: every route, and every status that the guards of the doors answer with."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from bridge.api.app import make_app
from bridge.api.http.operations import check_declared, routes_of
from bridge.api.rest import openapi
from bridge.settings import Settings
from tests.bridge.gateway_process import GatewayProcess, ModelsThread, running_gateway
from tests.bridge.house import write_mode

STATIC = {"/docs/assets"}


@pytest.fixture
def app(tmp_path: Path) -> web.Application:
    return make_app(Settings(state_dir=tmp_path, nats_prefix="test.openapi"), "nats://127.0.0.1:1")


@pytest.fixture
def document(app: web.Application) -> dict[str, Any]:
    return json.loads(json.dumps(openapi.document(app)))


@pytest.fixture
async def client(nats_url: str, tmp_path: Path) -> AsyncIterator[TestClient]:
    small = Settings(
        state_dir=tmp_path, nats_prefix="test.openapi", job_store_bytes=2**24, image_store_bytes=2**25, max_pending=4
    )
    async with TestClient(TestServer(make_app(small, nats_url))) as opened:
        yield opened


def test_every_route_is_in_the_document(app: web.Application, document: dict[str, Any]) -> None:
    served = {
        (resource.canonical, route.method.lower())
        for resource in app.router.resources()
        for route in resource
        if route.method != "HEAD" and resource.canonical not in STATIC
    }
    told = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert served == told
    assert ("/metrics", "get") in told


def test_a_route_without_a_declaration_stops_the_start(app: web.Application) -> None:
    async def forgotten(_: web.Request) -> web.Response:
        return web.Response()

    check_declared(app)
    app.router.add_get("/forgotten", forgotten)
    with pytest.raises(TypeError, match="no @operation is declared for GET /forgotten"):
        check_declared(app)


def test_every_operation_tells_of_its_guards(app: web.Application, document: dict[str, Any]) -> None:
    for method, path, operation in routes_of(app):
        assert operation is not None
        told = document["paths"][path][method.lower()]
        always = {"400", "403", "500"} | (set() if operation.open else {"401", "429"})
        with_body = {"408", "413", "415", "422"} if operation.takes_body else set()
        assert always | with_body <= set(told["responses"]), path
        for status, response in told["responses"].items():
            assert response["description"], (path, status)
            if int(status) >= 400:
                assert "ErrorEnvelope" in json.dumps(response["content"])
        named = {parameter["name"] for parameter in told.get("parameters", []) if parameter["in"] == "path"}
        assert named == {part[1:-1] for part in path.split("/") if part.startswith("{")}


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    for name in {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
        assert name in document["components"]["schemas"], name


def test_only_health_and_readiness_are_open(app: web.Application) -> None:
    assert {path for _, path, operation in routes_of(app) if operation and operation.open} == {"/healthz", "/readyz"}


async def test_the_page_shows_the_document_with_nothing_from_outside(client: TestClient) -> None:
    page = await (await client.get("/docs")).text()
    assert "http" not in page.replace("<!doctype html>", "")
    for source in ("docs/start.js", "docs/assets/swagger-ui.css", "docs/assets/swagger-ui-bundle.js"):
        assert source in page
        assert (await client.get("/" + source)).status == 200
    assert (await client.get("/openapi.json")).content_type == "application/json"


async def test_the_document_changes_with_the_modes_and_is_made_only_then(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    real = openapi.document
    monkeypatch.setattr(openapi, "document", lambda app: made.append(app) or real(app))

    async def paths() -> set[str]:
        return set((await (await client.get("/openapi.json")).json())["paths"])

    assert "/v1/modes/paint" not in await paths()
    await paths()
    assert len(made) == 1
    path = write_mode(tmp_path / "workflows", "paint")
    assert "/v1/modes/paint" in await paths()
    (path.parent / "api" / path.name).write_text("{}")
    assert "/v1/modes/paint" not in await paths()
    path.unlink()
    await paths()
    assert len(made) == 4


# -- what the schema says and what the service does ------------------------------------------------------------------

BODIES: list[dict[str, Any]] = [
    {},
    {"width": None, "height": None, "seed": None, "num_images": None, "mode": None, "output_format": None},
    *({"width": width} for width in (240, 255, 256, 257, 264, 272, 512.0, 512.5, 2048, 2064, "512", True)),
    *({"num_inference_steps": steps} for steps in (0, 1, 3, 8, 9, 20, 21, 50)),
    *({"num_inference_steps": steps, "model": "lightning"} for steps in (1, 2, 3, 8, 9)),
    *({"num_images": count} for count in (0, 1, 5, 6, 8)),
    *({"guidance_scale": scale} for scale in (-1, 0, 10, 10.5)),
    *({"seed": seed} for seed in (-1, 0, 2**53 - 1, 2**53)),
    *({"prompt": prompt} for prompt in ("", " ", "\u200b", "x" * 10_000, "x" * 10_001, None, 7)),
    *({"output_format": name} for name in ("png", "gif", "PNG")),
    *({"job_id": job} for job in ("x", "0d4c1d3a-3a3d-4b9f-8a51-0b2f3c4d5e6f", "0D4C1D3A-3A3D-4B9F-8A51-0B2F3C4D5E6F")),
    {"callback_url": "https://hooks.example.org"},
    {"cancel_on_disconnect": True},
    {"cancel_on_disconnect": False},
    {"unknown": 1},
    {"mode": "text-to-image"},
]


@pytest.fixture(scope="module")
def limited(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    options = ("--max-steps", "20", "--max-images", "5", "--max-pending", "1000")
    with running_gateway(nats_url, tmp_path_factory.mktemp("limited"), *options, prefix="test.schema") as running:
        models = ModelsThread(nats_url, running.names)
        yield running
        models.close()


@pytest.mark.parametrize("body", BODIES, ids=lambda body: ascii(body)[:50])
def test_a_body_fits_the_schema_if_and_only_if_it_is_accepted(limited: GatewayProcess, body: dict[str, Any]) -> None:
    document = limited.get("/openapi.json").json()
    schema = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fits = jsonschema_rs.is_valid({**schema, "components": document["components"]}, {"prompt": "a cat", **body})
    answer = limited.post("/v1/jobs", json={"prompt": "a cat", **body})
    assert fits == (answer.status_code == 202), answer.text


def test_a_cursor_fits_its_pattern_and_so_does_no_other_text(limited: GatewayProcess) -> None:
    for _ in range(3):
        limited.post("/v1/jobs", json={"prompt": "a cat"})
    [cursor] = [
        each["schema"]
        for each in limited.get("/openapi.json").json()["paths"]["/v1/jobs"]["get"]["parameters"]
        if each["name"] == "cursor"
    ]
    page = limited.get("/v1/jobs?limit=1").json()
    assert jsonschema_rs.is_valid(cursor, page["next_cursor"])
    following = limited.get(f"/v1/jobs?limit=1&cursor={page['next_cursor']}").json()
    assert following["jobs"][0]["job_id"] != page["jobs"][0]["job_id"]
    assert not jsonschema_rs.is_valid(cursor, "WzEuMCwgImoiXQ")


def test_answers_lead_to_operations_that_there_are(document: dict[str, Any]) -> None:
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    links = [
        (name, link)
        for operation in operations
        for response in operation["responses"].values()
        for name, link in response.get("links", {}).items()
    ]
    assert {name for name, _ in links} == {
        *("job_state", "job_events", "job_image", "job_archive", "cancel_job", "list_jobs"),
    }
    for _, link in links:
        [target] = [operation for operation in operations if operation["operationId"] == link["operationId"]]
        assert set(link["parameters"]) <= {parameter["name"] for parameter in target["parameters"]}
