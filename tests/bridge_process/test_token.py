"""A ComfyUI with a token: nobody else on this machine can use it, and the bridge and the editor can."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import yaml

from bridge.comfyui import ComfyUI
from bridge.comfyui.errors import ComfyUIError
from bridge.comfyui.token import TOKEN_VARIABLE, token_headers
from bridge.service.children.comfyui import ManagedComfyUI
from bridge.service.installer import PACK, Installation

TOKEN = "s3cret-token_of.this~test"
GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


@pytest.fixture(scope="module")
async def locked(
    installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[ManagedComfyUI, Path]]:
    """A managed ComfyUI with our pack and a token, and the token's file."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "base" / "custom_nodes").mkdir(parents=True)
    token = folder / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    paths = folder / "paths.yaml"
    paths.write_text(yaml.safe_dump({"test": {"custom_nodes": str(PACK.parent)}}))
    comfyui = ManagedComfyUI(
        installation,
        base_directory=folder / "base",
        extra_model_paths=paths,
        log_file=folder / "comfyui.log",
        extra_arguments=["--disable-api-nodes"],
        env={**os.environ, TOKEN_VARIABLE: str(token)},
    )
    await comfyui.start()
    try:
        await comfyui.wait_ready()
        yield comfyui, token
    finally:
        await comfyui.stop()


async def test_without_the_token_nothing_is_served(locked: tuple[ManagedComfyUI, Path]) -> None:
    comfyui, _ = locked
    wrong = ["Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \u00e9"]
    async with aiohttp.ClientSession() as session:
        for path in ("/", "/system_stats", "/api/queue", "/internal/logs", "/ws", "/no-such-route", "/?token=wrong"):
            async with session.get(comfyui.url + path) as response:
                assert response.status == 401, path
                assert response.headers["WWW-Authenticate"] == "Bearer"
        for header in wrong:
            async with session.get(comfyui.url + "/queue", headers={"Authorization": header}) as response:
                assert response.status == 401, header
        async with session.post(comfyui.url + f"/prompt?token={TOKEN}", json={"prompt": GRAPH}) as response:
            assert response.status == 401, "in other addresses a token would end up in logs"
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await session.ws_connect(comfyui.url + "/ws")


async def test_a_browser_gets_its_cookie_from_the_address(locked: tuple[ManagedComfyUI, Path]) -> None:
    comfyui, _ = locked
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.get(comfyui.url + f"/?token={TOKEN}", allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (303, "/")
            cookie = response.headers["Set-Cookie"]
            assert {"HttpOnly", "SameSite=Lax"} <= set(cookie.split("; "))
        async with session.get(comfyui.url + "/") as response:
            assert (response.status, "ComfyUI" in await response.text()) == (200, True)
        async with session.ws_connect(comfyui.url + "/ws") as socket:
            assert (await socket.receive()).type is aiohttp.WSMsgType.TEXT


async def test_the_bridge_sends_the_token(locked: tuple[ManagedComfyUI, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    comfyui, token = locked
    async with ComfyUI(comfyui.url) as client:
        with pytest.raises(ComfyUIError, match="wants its token"):
            await client.system_stats()
    monkeypatch.setenv(TOKEN_VARIABLE, str(token))
    async with ComfyUI(comfyui.url) as client:
        result = await client.run(GRAPH, prompt_id=str(uuid.uuid4()))
        assert client.connected
        [image] = result.outputs["2"]["images"]
        assert (await client.view(**image)).startswith(b"\x89PNG")


def test_a_token_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    assert token_headers({}) == {}
    assert token_headers({TOKEN_VARIABLE: " "}) == {}
    with pytest.raises(ComfyUIError, match=r"gone.*cannot be read"):
        token_headers({TOKEN_VARIABLE: str(tmp_path / "gone")})
    for content in (b"", b"  \n", b"two words", b"two\nlines", b"\x1b[31m", b"\xff"):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ComfyUIError, match="bad"):
            token_headers({TOKEN_VARIABLE: str(tmp_path / "bad")})
