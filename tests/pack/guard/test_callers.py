"""Who may call ComfyUI: one row a form of the headers, as browsers and programs send them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from multidict import CIMultiDict
from neurolux.guard.callers import refused
from neurolux.guard.settings import guard_settings

LOCAL = {}
LAN = {"listen": "0.0.0.0,::"}
PAGE = "http://127.0.0.1:8188"


def code(
    headers: list[tuple[str, str]], *, hosts: str = "", method: str = "POST", path: str = "/prompt", **options: str
):
    """The code of the refusal, or None."""
    settings = guard_settings({"NEUROLUX_ALLOWED_HOSTS": hosts}, SimpleNamespace(**options))
    refusal = refused(settings, method, path, CIMultiDict(headers))
    return refusal.code if refusal is not None else None


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8188",
        "127.0.0.1:",
        "127.0.0.2:8188",
        "127.255.255.254",
        "localhost",
        "localhost:8188",
        "LOCALHOST:8188",
        "LocalHost",
        "localhost.:8188",
        "comfy.localhost:8188",
        "[::1]",
        "[::1]:8188",
        "[0:0:0:0:0:0:0:1]:8188",
        "[::ffff:127.0.0.1]:8188",
        "[::FFFF:7f00:1]",
        " 127.0.0.1:8188 ",
    ],
)
def test_names_of_this_machine_are_its_host(host: str) -> None:
    assert code([("Host", host)]) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":8188",
        "evil.example",
        "evil.example:8188",
        "rebind.example.invalid",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1.nip.io:8188",
        "evillocalhost",
        "localhost..",
        ".localhost.evil",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.0.0.1 evil.example",
        "127.0.0.1, evil.example",
        "127.0.0.1@evil.example",
        "evil.example@127.0.0.1",
        "127.0.0.1/evil.example",
        "127.0.0.1#evil.example",
        "127.0.0.1?evil.example",
        "127.0.0.1\\evil.example",
        "http://127.0.0.1",
        "127.0.0.1:8188:9",
        "127.0.0.1:port",
        "127.0.0.1:٣",
        "0.0.0.0",
        "0.0.0.0:8188",
        "[::]",
        "::1",
        "[::1",
        "[::1]evil",
        "[fe80::1%25eth0]",
        "[::1%25lo]",
        "192.168.1.5:8188",
        "10.0.0.1",
        "169.254.169.254",
        "[::ffff:192.168.1.5]",
        "ⓛocalhost",
        "localhost\x00.evil.example",
    ],
)
def test_any_other_host_is_foreign_where_comfyui_listens_on_loopback(host: str) -> None:
    assert code([("Host", host)]) == "foreign_host"
    assert code([("Host", host)], listen="127.0.0.1") == "foreign_host"
    assert code([("Host", host)], listen="::1,localhost") == "foreign_host"


def test_a_request_without_host_is_foreign_and_with_two_is_bad() -> None:
    assert code([]) == "foreign_host"
    assert code([], **LAN) is None
    assert code([("Host", "127.0.0.1"), ("Host", "evil.example")]) == "bad_host"
    assert code([("Host", "127.0.0.1"), ("host", "127.0.0.1")], **LAN) == "bad_host"


@pytest.mark.parametrize(
    ("hosts", "host", "passes"),
    [
        ("comfy.example", "comfy.example", True),
        ("comfy.example", "COMFY.example.:443", True),
        ("comfy.example, gpu.lan", "gpu.lan:8188", True),
        ("https://comfy.example", "comfy.example", True),
        ("https://comfy.example", "comfy.example:443", True),
        ("https://comfy.example", "comfy.example:8188", True),
        ("comfy.example:8188", "comfy.example:8188", True),
        ("comfy.example:8188", "comfy.example:9", False),
        ("192.168.1.5", "192.168.1.5:8188", True),
        ("[fd00::5]", "[FD00:0::5]:8188", True),
        ("comfy.example", "evil.comfy.example", False),
        ("comfy.example", "comfy.example.evil", False),
        ("*", "anything.example", True),
        (",, ,", "evil.example", False),
        ("not a name", "not a name", False),
    ],
)
@pytest.mark.parametrize("options", [LOCAL, LAN])
def test_a_list_of_hosts_decides_alone_on_loopback_and_on_a_network(
    hosts: str, host: str, passes: bool, options: dict[str, str]
) -> None:
    listed = any(character.isalnum() for character in hosts) or hosts == "*"
    expected = None if passes or (options and not listed) else "foreign_host"
    assert code([("Host", host)], hosts=hosts, **options) == expected


@pytest.mark.parametrize("listen", ["0.0.0.0", "0.0.0.0,::", "::", "192.168.1.5", "127.0.0.1,192.168.1.5", "gpu.lan"])
@pytest.mark.parametrize("host", ["192.168.1.5:8188", "gpu.local:8188", "pod-8188.proxy.example", "[fd00::5]:8188"])
def test_a_comfyui_that_was_opened_to_a_network_may_have_any_name_there(listen: str, host: str) -> None:
    assert code([("Host", host)], listen=listen) is None
    assert code([("Host", host), ("Origin", f"http://{host}")], listen=listen) is None
    assert code([("Host", host), ("Origin", "null")], listen=listen) == "foreign_origin"
    assert code([("Host", host), ("Origin", "https://evil.example")], listen=listen) == "foreign_origin"
    assert code([("Host", host), ("Sec-Fetch-Site", "cross-site")], listen=listen) == "cross_site"


@pytest.mark.parametrize(
    ("host", "origin", "passes"),
    [
        ("127.0.0.1:8188", "http://127.0.0.1:8188", True),
        ("127.0.0.1:8188", "HTTP://127.0.0.1:8188", True),
        ("localhost:8188", "http://localhost:8188", True),
        ("LOCALHOST.:8188", "http://localhost:8188", True),
        ("[::1]:8188", "http://[::1]:8188", True),
        ("[::1]:8188", "http://[0:0::1]:8188", True),
        ("localhost", "http://localhost", True),
        ("localhost", "https://localhost", True),
        ("localhost:443", "https://localhost", True),
        ("localhost:80", "http://localhost", True),
        ("localhost", "http://localhost:80", True),
        ("127.0.0.1:8188", "null", False),
        ("127.0.0.1:8188", "NULL", False),
        ("127.0.0.1:8188", "", False),
        ("127.0.0.1:8188", "file://", False),
        ("127.0.0.1:8188", "http://", False),
        ("127.0.0.1:8188", "//127.0.0.1:8188", False),
        ("127.0.0.1:8188", "127.0.0.1:8188", False),
        ("127.0.0.1:8188", "http://127.0.0.1:8188/", False),
        ("127.0.0.1:8188", "http://127.0.0.1:8188 http://evil.example", False),
        ("127.0.0.1:8188", "http://127.0.0.1:8188, http://evil.example", False),
        ("127.0.0.1:8188", "http://127.0.0.1:8188@evil.example", False),
        ("127.0.0.1:8188", "http://evil.example@127.0.0.1:8188", False),
        ("127.0.0.1:8188", "http://127.0.0.1:3000", False),
        ("127.0.0.1:8188", "http://127.0.0.1", False),
        ("127.0.0.1:8188", "http://localhost:8188", False),
        ("localhost:8188", "http://127.0.0.1:8188", False),
        ("localhost:80", "https://localhost", False),
        ("127.0.0.1:8188", "http://evil.example", False),
        ("127.0.0.1:8188", "http://evil.example:8188", False),
        ("127.0.0.1:8188", "https://127.0.0.1.evil.example:8188", False),
        ("127.0.0.1:8188", "chrome-extension://abcdefgh", False),
    ],
)
def test_only_a_page_of_comfyui_itself_may_call_it(host: str, origin: str, passes: bool) -> None:
    assert code([("Host", host), ("Origin", origin)]) == (None if passes else "foreign_origin")


def test_of_two_origins_each_must_be_its_own() -> None:
    own, foreign = ("Origin", PAGE), ("Origin", "http://evil.example")
    assert code([("Host", "127.0.0.1:8188"), own, foreign]) == "foreign_origin"
    assert code([("Host", "127.0.0.1:8188"), foreign, own]) == "foreign_origin"


@pytest.mark.parametrize(
    ("site", "passes"),
    [
        ("same-origin", True),
        ("none", True),
        ("Same-Origin", True),
        ("same-site", False),
        ("cross-site", False),
        ("CROSS-SITE", False),
        ("", False),
        ("null", False),
        ("same-origin, cross-site", False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_a_browser_says_when_another_site_asks(site: str, passes: bool, method: str) -> None:
    headers = [("Host", "127.0.0.1:8188"), ("Sec-Fetch-Site", site)]
    assert code(headers, method=method, path="/queue") == (None if passes else "cross_site")
    assert code([*headers, ("Sec-Fetch-Site", "cross-site")], method=method, path="/queue") == "cross_site"


@pytest.mark.parametrize(
    ("method", "path", "mode", "destination", "passes"),
    [
        ("GET", "/", "navigate", "document", True),
        ("GET", "/", "navigate", "iframe", False),
        ("GET", "/", "no-cors", "script", False),
        ("GET", "/", "cors", "empty", False),
        ("POST", "/", "navigate", "document", False),
        ("GET", "/view", "navigate", "document", False),
        ("GET", "/userdata/evil.html", "navigate", "document", False),
        ("GET", "/ws", "websocket", "websocket", False),
    ],
)
def test_of_another_site_only_a_link_to_the_editor_is_followed(
    method: str, path: str, mode: str, destination: str, passes: bool
) -> None:
    headers = [("Host", "127.0.0.1:8188"), ("Sec-Fetch-Site", "cross-site")]
    headers += [("Sec-Fetch-Mode", mode), ("Sec-Fetch-Dest", destination)]
    assert code(headers, method=method, path=path) == (None if passes else "cross_site")
    assert code([*headers, ("Sec-Fetch-Mode", "navigate")], method=method, path=path) == "cross_site"


def test_pages_that_the_user_has_allowed_may_call() -> None:
    host, site = ("Host", "127.0.0.1:8188"), ("Sec-Fetch-Site", "cross-site")
    headers = [host, ("Origin", "http://localhost:5173"), site]
    assert code(headers) == "foreign_origin"
    for hosts in ("localhost:5173", "http://localhost:5173", "localhost"):
        assert code(headers, hosts=hosts) is None, hosts
    for hosts in ("localhost:5174", "https://localhost:5173", "127.0.0.1"):
        assert code(headers, hosts=hosts) == "foreign_origin", hosts
    assert code([host, site], hosts="localhost:5173") == "cross_site"
    assert code([host, ("Origin", "null"), site], hosts="localhost:5173, null") == "foreign_origin"


def test_comfyuis_own_cors_option_is_respected() -> None:
    host, site = ("Host", "127.0.0.1:8188"), ("Sec-Fetch-Site", "cross-site")
    headers = [host, ("Origin", "https://app.example"), site]
    assert code(headers, enable_cors_header="https://app.example") is None
    assert code(headers, enable_cors_header="https://other.example") == "foreign_origin"
    assert code(headers, enable_cors_header="*") is None
    assert code([("Host", "evil.example")], enable_cors_header="*") == "foreign_host"


def test_a_proxy_on_a_network_may_change_the_host() -> None:
    headers = [("Host", "10.0.0.7:8188"), ("Origin", "https://comfy.example")]
    assert code(headers, **LAN) == "foreign_origin"
    assert code([*headers, ("X-Forwarded-Host", "comfy.example")], **LAN) is None
    assert code([*headers, ("Sec-Fetch-Site", "same-origin")], **LAN) is None
    assert code([*headers, ("Sec-Fetch-Site", "cross-site")], **LAN) == "foreign_origin"
    local = [("Host", "127.0.0.1:8188"), ("Origin", "https://evil.example"), ("X-Forwarded-Host", "evil.example")]
    assert code(local) == "foreign_origin"


def test_programs_pass(caplog: pytest.LogCaptureFixture) -> None:
    assert code([("Host", "127.0.0.1:8188"), ("User-Agent", "curl")]) is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("value", "enabled", "checks"),
    [
        ("", True, True),
        ("on", True, True),
        (" ON ", True, True),
        ("open", True, False),
        ("Off", False, False),
        ("no", True, True),
        ("0", True, True),
    ],
)
def test_one_variable_opens_comfyui_on_purpose(value: str, enabled: bool, checks: bool) -> None:
    settings = guard_settings({"NEUROLUX_GUARD": value})
    assert (settings.enabled, settings.enabled and settings.check_callers) == (enabled, checks)


def test_a_token_that_cannot_be_read_opens_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "token"
    assert guard_settings({}).token is None
    for content in (None, b"", b" \n", b"\xff"):
        if content is not None:
            file.write_bytes(content)
        caplog.clear()
        first, second = (guard_settings({"NEUROLUX_COMFYUI_TOKEN_FILE": str(file)}).token for _ in range(2))
        assert first
        assert first != second
        assert str(file) in caplog.text
    file.write_text("secret\n")
    file.chmod(0o640)
    caplog.clear()
    assert guard_settings({"NEUROLUX_COMFYUI_TOKEN_FILE": str(file)}).token == "secret"
    assert "chmod 600" in caplog.text
    file.chmod(0o600)
    caplog.clear()
    assert guard_settings({"NEUROLUX_COMFYUI_TOKEN_FILE": str(file)}).token == "secret"
    assert not caplog.text
