"""Images by URL: fetched where the service allows it, within limits, and never from where a stranger must not reach."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import FormData, web
from aiohttp.test_utils import TestClient, TestServer

from bridge.gateway.outside import image_urls
from bridge.gateway.outside.image_urls import ImageUrls
from bridge.modes.images_in import BadImage
from tests.bridge.gateway.test_images_in import IMAGE_NODES, arrived, make_image
from tests.bridge.house import House, submit, write_mode

ALLOWED = {"image_urls": ("*",), "image_urls_allow_private": True}
MAX_BYTES = 50_000


class Site:
    """A web server with images, and with everything that may be wrong with one."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.data = make_image()
        self.url = ""
        self.host = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        match request.path:
            case "/image" | "/photo.png":
                return web.Response(body=self.data, content_type="text/html")  # What it is shows in its content.
            case "/text":
                return web.Response(text="<html>no image</html>", content_type="image/png")
            case "/missing":
                return web.Response(status=404)
            case "/announced":
                return web.Response(body=bytes(MAX_BYTES + 1))
            case "/endless":
                response = web.StreamResponse()
                response.enable_chunked_encoding()
                await response.prepare(request)
                for _ in range(1000):
                    await response.write(bytes(1000))
                return response
            case "/slow":
                response = web.StreamResponse()
                await response.prepare(request)
                await response.write(self.data[:20])
                await asyncio.sleep(30)
                return response
            case "/gzip":
                return web.Response(body=b"x", headers={"Content-Encoding": "gzip"})
            case "/loop":
                return self._moved("/loop")
            case "/moved":
                return self._moved("/image")
            case "/to-metadata":
                return self._moved("http://169.254.169.254/latest/meta-data")
            case "/to-file":
                return self._moved("file:///etc/passwd")
            case "/to-other":
                return self._moved("https://other.example/x.png")
            case "/to-user":
                return self._moved(self.url.replace("http://", "http://me:secret@") + "/image")
            case _:
                raise AssertionError(request.path)

    @staticmethod
    def _moved(location: str) -> web.Response:
        return web.Response(status=302, headers={"Location": location, "Set-Cookie": "a=b"})


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", site.handle)
    server = TestServer(app)
    await server.start_server()
    site.url = f"http://127.0.0.1:{server.port}"
    yield site
    await server.close()


def urls(*hosts: str, **options: Any) -> ImageUrls:
    return ImageUrls(hosts, max_bytes=MAX_BYTES, allow_private=True, **options)


async def gateway_of(house: House, tmp_path: Path, **settings: Any) -> TestClient:
    write_mode(tmp_path / "workflows", "repaint", IMAGE_NODES)
    return await house.gateway(**settings)


async def test_an_image_by_url_arrives_as_if_it_had_been_sent(house: House, tmp_path: Path, site: Site) -> None:
    gateway, worker = await gateway_of(house, tmp_path, **ALLOWED), await house.worker()
    await submit(
        gateway, mode="repaint", image=site.url + "/image", mask=site.url.upper().replace("127", "127") + "/image"
    )
    job = await worker.take()
    assert job.parameters["image"] != site.url
    await submit(gateway, mode="repaint", image=site.url + "/moved")
    assert await arrived(worker) == site.data


async def test_a_form_may_name_a_url_too(house: House, tmp_path: Path, site: Site) -> None:
    gateway, worker = await gateway_of(house, tmp_path, **ALLOWED), await house.worker()
    form = FormData({"prompt": "a cat", "mode": "repaint", "image": site.url + "/image"}, default_to_multipart=True)
    answer = await gateway.post("/v1/jobs", data=form)
    assert answer.status == 202, await answer.text()
    assert await arrived(worker) == site.data


async def test_by_default_nothing_is_fetched(house: House, tmp_path: Path, site: Site) -> None:
    gateway = await gateway_of(house, tmp_path)
    body = {"prompt": "a cat", "mode": "repaint", "image": site.url + "/image"}
    answer = await gateway.post("/v1/jobs", json=body)
    error = (await answer.json())["error"]
    assert (answer.status, error["field"]) == (422, "image")
    assert "IMAGEGEN_IMAGE_URLS" in error["message"]
    assert site.asked == []


async def test_private_addresses_need_a_setting_of_their_own(house: House, tmp_path: Path, site: Site) -> None:
    gateway = await gateway_of(house, tmp_path, image_urls=("*",))
    for url in (site.url, site.url.replace("127.0.0.1", "localhost"), site.url.replace("127.0.0.1", "[::1]")):
        answer = await gateway.post("/v1/jobs", json={"prompt": "a", "mode": "repaint", "image": url + "/image"})
        error = (await answer.json())["error"]
        assert answer.status == 422
        assert "not a public address; IMAGEGEN_IMAGE_URLS_ALLOW_PRIVATE=1" in error["message"]
    assert site.asked == []


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/missing", "HTTP 404"),
        ("/announced", f"{MAX_BYTES + 1} bytes; at most {MAX_BYTES}"),
        ("/endless", f"more than {MAX_BYTES} bytes"),
        ("/gzip", "encoded"),
        ("/loop", "more than 3 redirects"),
        ("/to-file", "not an http or https URL: file"),
        ("/to-other", "is on other.example"),
        ("/to-user", "a user name or a password"),
        ("/slow", "was not there within 1 s"),
    ],
)
async def test_what_cannot_be_fetched_is_told_with_its_cause(site: Site, path: str, told: str) -> None:
    with pytest.raises(BadImage, match=told):
        await urls("127.0.0.1", timeout_s=1).fetch(site.url + path)


async def test_a_redirect_to_a_private_address_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the two addresses only the second is checked here: a test has no public server."""
    fetching = urls("*")
    checked: list[str] = []

    async def check(url: Any) -> None:
        checked.append(str(url.host))
        if url.host != "127.0.0.1":
            guard = ImageUrls(("*",), max_bytes=MAX_BYTES)
            await guard._check_address(url)

    monkeypatch.setattr(fetching, "_check_address", check)
    with pytest.raises(BadImage, match=r"169\.254\.169\.254, which is not a public address"):
        await fetching.fetch(site.url + "/to-metadata")
    assert checked == ["127.0.0.1", "169.254.169.254"]


async def test_a_name_that_changes_its_address_gains_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the name is public when it is checked, and this machine when the connection is made."""
    loop = asyncio.get_running_loop()
    answers = ["93.184.216.34", "127.0.0.1"]

    async def getaddrinfo(host: str, port: int, **options: Any) -> Any:
        address = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    port = site.url.rpartition(":")[2]
    with pytest.raises(BadImage, match="127.0.0.1, which is not a public address"):
        await ImageUrls(("*",), max_bytes=MAX_BYTES).fetch(f"http://rebound.example:{port}/image")
    assert site.asked == []


@pytest.mark.parametrize(
    ("hosts", "host", "allowed"),
    [
        ("images.example", "images.example", True),
        ("images.example", "IMAGES.example.", True),
        ("images.example", "x.images.example", False),
        ("images.example", "images.example.evil.org", False),
        ("*.example", "a.b.example", True),
        ("*.example", "example", False),
        ("*.example", "badexample", False),
        ("*", "anything.org", True),
        ("a.org, b.org", "b.org", True),
    ],
)
async def test_only_listed_hosts_are_asked(
    hosts: str, host: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> None:
        raise BadImage("reached the guard of addresses")

    fetching = urls(*(each.strip() for each in hosts.split(",")))
    monkeypatch.setattr(fetching, "_check_address", refuse)
    with pytest.raises(BadImage, match="reached" if allowed else "fetches no images"):
        await fetching.fetch(f"https://{host}/x.png")


@pytest.mark.parametrize("text", ["https://", "https://[::1", "https://a b/", "http://x:99999/", "https:///x.png"])
async def test_what_is_no_url_is_told(text: str) -> None:
    with pytest.raises(BadImage):
        await urls("*", timeout_s=2).fetch(text)


async def test_a_url_of_no_image_and_a_long_one_are_refused(house: House, tmp_path: Path, site: Site) -> None:
    gateway = await gateway_of(house, tmp_path, **ALLOWED)
    long = site.url + "/image?" + "x" * image_urls.MAX_URL_CHARS
    for url, told in ((site.url + "/text", "is not a PNG, JPEG or WebP image"), (long, "at most 2000")):
        answer = await gateway.post("/v1/jobs", json={"prompt": "a", "mode": "repaint", "image": url})
        assert answer.status == 422
        assert told in (await answer.json())["error"]["message"]
