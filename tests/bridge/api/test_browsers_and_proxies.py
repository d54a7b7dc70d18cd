"""Web pages of listed origins, and a service behind a proxy that gives it a path of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from bridge.settings import Settings, SettingsError
from tests.bridge.gateway_process import BODY, GatewayProcess, ModelsThread, running_gateway

APP = "https://app.example.org"
TOKEN = "open sesame"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def gateway(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    options = ("--cors-origins", f"{APP},http://localhost:3000", "--token", TOKEN, "--root-path", "/images/")
    folder = tmp_path_factory.mktemp("cors")
    with running_gateway(nats_url, folder, *options, "--forwarded-prefix", prefix="test.cors") as running:
        models = ModelsThread(nats_url, running.names)
        yield running
        models.close()


@pytest.fixture(scope="module")
def plain(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running_gateway(nats_url, tmp_path_factory.mktemp("plain"), prefix="test.cors.off") as running:
        models = ModelsThread(nats_url, running.names)
        yield running
        models.close()


def ask(gateway: GatewayProcess, method: str, path: str, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.request(method, gateway.url + path, headers=named, timeout=20)


# -- pages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (APP, True),
        ("https://app.example.org:443", True),
        ("HTTPS://APP.example.org", True),
        ("http://localhost:3000", True),
        ("http://app.example.org", False),
        ("https://app.example.org:8443", False),
        ("https://app.example.org.evil.example", False),
        ("https://evil.example/https://app.example.org", False),
        ("http://localhost:3001", False),
        ("null", False),
        ("*", False),
    ],
)
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_only_pages_of_listed_origins_are_answered(
    gateway: GatewayProcess, origin: str, allowed: bool, site: str
) -> None:
    answer = ask(gateway, "GET", "/v1/modes", Origin=origin, Sec_Fetch_Site=site, **AUTH)
    assert answer.status_code == (200 if allowed else 403)
    assert answer.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
    assert answer.headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/jobs/nope", 404), ("GET", "/v1/jobs?x=1", 422), ("GET", "/nowhere", 404), ("PUT", "/v1/jobs", 405)],
)
def test_errors_can_be_read_too(gateway: GatewayProcess, method: str, path: str, status: int) -> None:
    answer = ask(gateway, method, path, Origin=APP, **AUTH)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (status, APP)
    assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
    refused = ask(gateway, method, path, Origin=APP)
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, APP)


@pytest.mark.parametrize(("path", "methods"), [("/v1/jobs", "GET, HEAD, POST"), ("/v1/generate-image", "POST")])
def test_a_preflight_needs_no_token(gateway: GatewayProcess, path: str, methods: str) -> None:
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization,content-type"}
    answer = ask(gateway, "OPTIONS", path, Origin=APP, Access_Control_Request_Private_Network="true", **asked)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == APP
    assert answer.headers["Access-Control-Allow-Methods"] == methods
    assert {"Authorization", "Content-Type"} <= set(answer.headers["Access-Control-Allow-Headers"].split(", "))
    assert answer.headers["Access-Control-Allow-Private-Network"] == "true"
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert ask(gateway, "OPTIONS", path, Origin="https://evil.example", **asked).status_code == 403
    assert ask(gateway, "OPTIONS", "/nowhere", Origin=APP, **asked).status_code in (401, 404)


def test_without_the_setting_no_page_is_answered(plain: GatewayProcess) -> None:
    for method in ("GET", "OPTIONS"):
        answer = ask(plain, method, "/v1/modes", Origin=APP, Access_Control_Request_Method="GET")
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("Access-Control")]
    assert "Vary" not in ask(plain, "GET", "/v1/modes").headers


@pytest.mark.parametrize(
    "origin", ["*", "null", "app.example.org", "https://a.example/", "https://*.example", "ftp://a"]
)
def test_what_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(SettingsError, match="is not an origin"):
        Settings(cors_origins=(origin,))


# -- proxies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "prefix"),
    [
        ("/v1/jobs", {}, "/images"),
        ("/images/v1/jobs", {}, "/images"),
        ("/v1/jobs", {"X_Forwarded_Prefix": "/gpu/7"}, "/gpu/7"),
        ("/gpu/7/v1/jobs", {"X_Forwarded_Prefix": "/gpu/7/"}, "/gpu/7"),
        ("/images/v1/jobs", {"X_Forwarded_Prefix": "/"}, ""),
    ],
)
def test_every_path_that_the_service_names_has_the_prefix(
    gateway: GatewayProcess, path: str, headers: dict[str, str], prefix: str
) -> None:
    sent = {name.replace("_", "-"): value for name, value in headers.items()} | AUTH
    answer = gateway.post(path, json=BODY, headers=sent)
    assert answer.status_code == 202, answer.text
    job = f"/v1/jobs/{answer.json()['job_id']}"
    assert answer.headers["Location"] == prefix + job
    assert ask(gateway, "GET", (prefix if prefix in path else "") + job, **headers, **AUTH).status_code == 200
    document = ask(gateway, "GET", "/openapi.json", **headers, **AUTH).json()
    assert document["servers"] == [{"url": prefix or "/"}]
    page = ask(gateway, "GET", "/images/docs", **AUTH)
    assert page.status_code == 200
    assert 'src="/' not in page.text, "its links are relative, so they hold under any path"
    assert ask(gateway, "GET", "/images/docs/assets/swagger-ui.css", **AUTH).status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        "//evil.example",
        "/a//b",
        "/a?b",
        "images",
        "/a b",
        "/../x",
        "/a/..",
        "/./a",
        "https://evil.example",
        "/" + "a" * 5000,
    ],
)
def test_a_prefix_that_is_no_path_is_refused(gateway: GatewayProcess, text: str) -> None:
    before = len(gateway.get("/v1/jobs?limit=200", headers=AUTH).json()["jobs"])
    answer = gateway.post("/v1/jobs", json=BODY, headers={"X-Forwarded-Prefix": text, **AUTH})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_prefix")
    assert len(gateway.get("/v1/jobs?limit=200", headers=AUTH).json()["jobs"]) == before


def test_the_header_counts_only_where_it_is_trusted(plain: GatewayProcess) -> None:
    answer = plain.post("/v1/jobs", json=BODY, headers={"X-Forwarded-Prefix": "/gpu"})
    assert answer.headers["Location"].startswith("/v1/jobs/")
    assert plain.get("/gpu/healthz", headers={"X-Forwarded-Prefix": "/gpu"}).status_code == 404


def test_a_path_that_only_begins_like_the_prefix_is_another(gateway: GatewayProcess) -> None:
    assert ask(gateway, "GET", "/imagesx/healthz").status_code in (401, 404)
    assert ask(gateway, "GET", "/images/healthz").status_code == 200
    assert ask(gateway, "GET", "/images/images/healthz").status_code in (401, 404)
