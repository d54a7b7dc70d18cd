"""Who may use the doors: programs with the token, where there is one, and no web page of another site."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
import requests
import websocket

from bridge.settings import Settings, SettingsError
from tests.bridge.gateway_process import GatewayProcess, running_gateway

FIRST, SECOND = "open sesame, the first", "s3cond-t0ken"
EVENTS = "/v1/jobs/6f158824-1320-44e6-a689-3661426a9dde/events"


@pytest.fixture(scope="module")
def plain(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """On loopback, without a token."""
    with running_gateway(nats_url, tmp_path_factory.mktemp("plain"), prefix="test.auth.plain") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def guarded(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """On every address of this machine, with two tokens in a file."""
    folder = tmp_path_factory.mktemp("guarded")
    tokens = folder / "tokens"
    tokens.write_text(f"# who may use it\n{FIRST}\n\n{SECOND}\n")
    options = ["--host", "0.0.0.0", "--token-file", str(tokens)]
    with running_gateway(nats_url, folder, *options, prefix="test.auth.guarded") as gateway:
        yield gateway


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"me:{password}".encode()).decode()}


# -- the token -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [FIRST, SECOND])
def test_every_token_of_the_file_is_good(guarded: GatewayProcess, token: str) -> None:
    assert guarded.get("/v1/modes", headers=bearer(token)).status_code == 200
    assert guarded.get("/v1/modes", headers={"Authorization": f"bearer {token}"}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/modes", "/v1/jobs", EVENTS, "/docs", "/docs/assets/swagger-ui.css",
                                  "/openapi.json", "/metrics", "/nothing"])  # fmt: skip
def test_without_the_token_nothing_is_told(guarded: GatewayProcess, path: str) -> None:
    answer = guarded.get(path)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "unauthorized"
    assert answer.headers["WWW-Authenticate"].startswith(("Bearer ", "Basic "))
    assert "NeuroLux" not in answer.text


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer wrong",
        "Bearer ",
        "Bearer",
        FIRST,  # without its scheme
        f"Token {FIRST}",
        f"Bearer {FIRST[:-1]}",
        f"Bearer {FIRST}x",
        "Bearer # who may use it",
        "Basic !!!",
        basic("wrong")["Authorization"],
        basic(SECOND)["Authorization"],  # good for the pages alone
    ],
)
def test_a_wrong_token_is_no_token(guarded: GatewayProcess, authorization: str) -> None:
    assert guarded.get("/v1/modes", headers={"Authorization": authorization}).status_code == 401


def test_a_token_of_bytes_that_are_no_text_is_a_wrong_one(guarded: GatewayProcess) -> None:
    head = b"GET /v1/modes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer \xff\xfe\r\n\r\n"
    assert guarded.raw(head).startswith(b"HTTP/1.1 401 ")


def test_a_person_opens_the_pages_with_the_token_as_password(guarded: GatewayProcess) -> None:
    assert guarded.get("/docs").headers["WWW-Authenticate"].startswith("Basic ")
    for path in ("/docs", "/docs/start.js", "/docs/assets/swagger-ui-bundle.js", "/openapi.json"):
        assert guarded.get(path, headers=basic(SECOND)).status_code == 200
        assert guarded.get(path, headers=basic("wrong")).status_code == 401


def test_health_and_readiness_stay_open(guarded: GatewayProcess) -> None:
    assert guarded.get("/healthz").status_code == 200
    assert guarded.get("/readyz").status_code == 503  # There is no worker; it says so to anybody.


def test_a_websocket_needs_the_token_too(guarded: GatewayProcess) -> None:
    url = f"ws://127.0.0.1:{guarded.port}{EVENTS}"
    with pytest.raises(websocket.WebSocketBadStatusException, match="401"):
        websocket.create_connection(url, timeout=10, suppress_origin=True)
    websocket.create_connection(url, timeout=10, suppress_origin=True, header=bearer(FIRST)).close()


def test_no_token_shows_in_the_log(guarded: GatewayProcess) -> None:
    guarded.get(f"/v1/modes/{SECOND}", headers={**bearer(FIRST), "X-Request-Id": SECOND, "User-Agent": FIRST})
    guarded.line(route="/v1/modes/{name}", status=404)
    assert FIRST not in guarded.log.read_text()
    assert SECOND not in guarded.log.read_text()


def test_a_host_beyond_this_machine_needs_a_token(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"host 0\.0\.0\.0 can be reached from other machines"):
        Settings(host="0.0.0.0", state_dir=tmp_path).refuse_open_host()
    Settings(host="0.0.0.0", state_dir=tmp_path, token="secret").refuse_open_host()


@pytest.mark.parametrize(
    ("content", "message"),
    [("# nobody\n\n", "holds no token"), ("tök\n", "must be printable ASCII"), (None, "cannot be read")],
)
def test_a_token_file_that_cannot_be_used_is_said_at_the_start(
    tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=message) as caught:
        Settings(host="0.0.0.0", token_file=file).refuse_open_host()
    assert str(file) in str(caught.value)


def test_the_command_line_wins_over_the_environment_for_tokens_too(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("from the file\n")
    assert Settings.from_environment({"IMAGEGEN_TOKEN_FILE": str(file)}).tokens() == ("from the file",)
    assert Settings.from_environment({"IMAGEGEN_TOKEN_FILE": str(file)}, token="mine").tokens() == ("mine",)
    assert Settings.from_environment({"IMAGEGEN_TOKEN": "other"}, token_file=file).tokens() == ("from the file",)
    with pytest.raises(SettingsError, match="both set"):
        Settings.from_environment({"IMAGEGEN_TOKEN": "other", "IMAGEGEN_TOKEN_FILE": str(file)})


# -- the name and the page -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "[::1]", "localhost:1"])
def test_on_loopback_the_service_has_loopback_names(plain: GatewayProcess, host: str) -> None:
    assert plain.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8005", "localhost.evil.example", "127.0.0.1.evil.example", "evil@localhost",
             "localhost/evil", "", "[::1", "localhost:x", "192.168.1.5"]
)  # fmt: skip
def test_any_other_name_is_refused_even_for_health(plain: GatewayProcess, host: str) -> None:
    answer = plain.get("/healthz", headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "foreign_origin"


def test_two_names_or_none_are_refused(plain: GatewayProcess) -> None:
    for hosts in (b"", b"Host: localhost\r\nHost: evil.example\r\n"):
        answer = plain.raw(b"GET /healthz HTTP/1.1\r\n" + hosts + b"Connection: close\r\n\r\n")
        assert answer.split()[1] in (b"400", b"403")


def test_with_a_token_on_a_wider_address_any_name_will_do(guarded: GatewayProcess) -> None:
    headers = {"Host": "images.example", **bearer(FIRST)}
    assert guarded.get("/v1/modes", headers=headers).status_code == 200
    own_page = {"Origin": "https://images.example", "Sec-Fetch-Site": "same-origin"}
    assert guarded.get("/v1/modes", headers=headers | own_page).status_code == 200


def test_allowed_hosts_name_a_proxy_and_nobody_else(nats_url: str, tmp_path: Path) -> None:
    environment = {"IMAGEGEN_ALLOWED_HOSTS": "Images.Example, [fd00::5]", "IMAGEGEN_TOKEN": FIRST}
    options = ("--host", "0.0.0.0")
    with running_gateway(nats_url, tmp_path, *options, prefix="test.auth.proxy", **environment) as gateway:
        for host, status in (("images.example", 200), ("[fd00::5]:443", 200), ("localhost", 200), ("evil", 403)):
            assert gateway.get("/v1/modes", headers={"Host": host, **bearer(FIRST)}).status_code == status, host


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://127.0.0.1", "http://localhost:3000", "null", "file://", "http://["]
)
def test_a_page_of_another_site_is_refused(plain: GatewayProcess, origin: str) -> None:
    for answer in (plain.get("/v1/modes", headers={"Origin": origin}),
                   plain.post("/v1/jobs", json={"prompt": "a cat"}, headers={"Origin": origin})):  # fmt: skip
        assert answer.status_code == 403, origin
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_our_own_page_is_answered(plain: GatewayProcess) -> None:
    assert plain.get("/v1/modes", headers={"Origin": plain.url, "Sec-Fetch-Site": "same-origin"}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site"])
def test_what_another_page_embeds_is_refused_though_it_has_no_origin(plain: GatewayProcess, site: str) -> None:
    image = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    assert plain.get("/v1/modes", headers=image).status_code == 403
    frame = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
    assert plain.get("/docs", headers=frame).status_code == 403
    link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert plain.get("/docs", headers=link).status_code == 200
    assert plain.post("/v1/jobs", headers=link, json={"prompt": "a cat"}).status_code == 403


def test_a_websocket_from_another_page_is_refused(plain: GatewayProcess) -> None:
    url = f"ws://127.0.0.1:{plain.port}{EVENTS}"
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        websocket.create_connection(url, timeout=10, origin="http://evil.example")
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        websocket.create_connection(url, timeout=10, suppress_origin=True, host="evil.example")
    websocket.create_connection(url, timeout=10, origin=plain.url).close()


async def test_events_of_another_page_are_refused_over_http_too(plain: GatewayProcess) -> None:
    headers = {"Accept": "text/event-stream", "Origin": "http://evil.example"}
    async with aiohttp.ClientSession() as session, session.get(plain.url + EVENTS, headers=headers) as answer:
        assert answer.status == 403


def test_answers_tell_browsers_to_be_careful(plain: GatewayProcess) -> None:
    headers = plain.get("/v1/modes").headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    page = plain.get("/docs").headers["Content-Security-Policy"]
    assert "script" not in page.replace("style-src 'self' 'unsafe-inline'", "")
    assert page.startswith("default-src 'self'")


def test_only_loopback_is_listened_on(plain: GatewayProcess) -> None:
    """Any other address of this machine answers nothing."""
    own = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in own - {"127.0.0.1", "127.0.1.1"}:
        with pytest.raises(OSError, match="refused|unreachable|timed out"):
            socket.create_connection((address, plain.port), timeout=2)
    assert requests.get(plain.url + "/healthz", timeout=5).ok


async def test_a_page_cannot_be_asked_twice_for_one_host(plain: GatewayProcess) -> None:
    """Several requests on one connection are each checked."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for host, status in (("localhost", 200), ("evil.example", 403), ("localhost", 200)):
            async with session.get(plain.url + "/healthz", headers={"Host": host}) as answer:
                assert answer.status == status
    await asyncio.sleep(0)
