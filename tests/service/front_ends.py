"""The editor in front ends other than the one that the ComfyUI under test brings.

A front end is static files. A page gets those of another version in place of the server's, which is what ComfyUI's
``--front-end-root`` does, but without a start of ComfyUI for each.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.async_api import ConsoleMessage, Page, Route

from scripts.export_workflows import editor
from tests.wheels import Wheel

OWN = None
"""The front end of the ComfyUI under test: 1.32.9 with the pinned one."""
NEWER = Wheel("comfyui-frontend-package", "1.58.1", "37912597537a731a8f421179618a736c24184c5bdbfa327f38b2fb7c291852d9")

on_own = pytest.mark.parametrize("front_end", [OWN], ids=["own"], indirect=True)
on_each = pytest.mark.parametrize("front_end", [OWN, NEWER], ids=["own", "newer"], indirect=True)
on_newer = pytest.mark.parametrize("front_end", [NEWER], ids=["newer"], indirect=True)


@dataclass
class Editor:
    """An open editor and what its browser's console said."""

    page: Page
    console: list[str] = field(default_factory=list)

    def ours(self) -> list[str]:
        """What the console said about this pack or from its files, but that a graph was refused, as a test wanted."""
        return [line for line in self.console if "neurolux" in line.lower() and "status of 422" not in line]


@asynccontextmanager
async def open_editor(url: str, front_end: Wheel | None) -> AsyncIterator[Editor]:
    """The editor of the ComfyUI at ``url`` in a front end, for as long as it is used."""
    console: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        source = message.location.get("url") or url
        if message.type in ("warning", "error") and source.startswith(url):  # Not what other servers do not answer.
            console.append(f"{message.type}: {message.text} ({source})")

    async def prepare(page: Page) -> None:
        page.on("console", heard)
        page.on("pageerror", lambda error: console.append(f"{error}\n{error.stack}"))
        if front_end is not None:
            await replace_files(page, url, front_end)
            # A page that does not come from the server would not be allowed to open its websocket.
            await page.context.grant_permissions(["local-network-access"])

    async with editor(url, prepare) as page:
        yield Editor(page, console)


async def replace_files(page: Page, url: str, front_end: Wheel) -> None:
    """Answer requests for static files from the wheel of a front end; all else goes to the server."""
    root = front_end.unpacked() / "comfyui_frontend_package" / "static"

    async def answer(route: Route) -> None:
        file = root / (urlsplit(route.request.url).path.lstrip("/") or "index.html")
        if file.is_file():
            await route.fulfill(path=file)
        else:
            await route.fallback()

    await page.route(f"{url}/**", answer)
