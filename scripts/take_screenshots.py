#!/usr/bin/env python3
"""Takes the screenshots in docs/images: ComfyUI's editor, *Publish as mode*, and the overlay.

python -m scripts.take_screenshots

A service must run (`imagegen up`). Needs what scripts/install-test-packages.sh installs. Run it after a text or a
layout has changed, and look at the result.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageGrab
from playwright.async_api import Page, ViewportSize

from bridge.client import ImageGenClient
from bridge.modes.library import SHIPPED_WORKFLOWS
from bridge.service.runtime import Runtime, running_service
from bridge.settings import Settings
from overlay.pygobject import require_gtk
from scripts.export_workflows import SET_VALUES, editor, open_graph
from tests.overlay.desktop import Hands, Person, session_bus, window_manager, x_server

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
PROMPT = "red apple, blue background"
HISTORY = (
    "yellow star above purple heart, pink background",
    "rocket, yellow background",
    "smiling face, green background",
    "two frogs, pink background",
    PROMPT,
)
OWN_MODE: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 24, "batch_size": 1, "color": 255}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "negative"}},
}
"""The graph that docs/MODES.md publishes: stock nodes only."""
MAKE_APP = """() => {
    app.graph.extra.linearData = {inputs: [['1', 'color'], ['1', 'width'], ['1', 'height']], outputs: ['3']};
    app.graph.arrange(60);
    app.canvas.ds.scale = 0.8;
    app.canvas.ds.offset = [500, 160];
}"""
SHOWS_IMAGE = """() => {
    const result = app.graph.nodes.find(node => node.type === 'NeuroLuxResult');
    return (result.imgs ?? []).some(image => image.complete);
}"""
WINDOW = ViewportSize(width=1600, height=1000)
"""Graphs of ours fit into it at full size."""
MENU_SIZE = {"x": 0, "y": 0, "width": 430, "height": 500}
DIALOG_MARGIN = 40
FADING_MS = 1000
"""Menus and dialogs fade in."""
CANVAS = "#202020"
APPLICATION, OVERLAY_TITLE = "org.neurolux.Overlay", "Generate an image"


async def take_editor(page: Page) -> None:
    """The graph of text-to-image after a run."""
    await page.set_viewport_size(WINDOW)
    await open_graph(page, json.loads((SHIPPED_WORKFLOWS / "text-to-image.json").read_bytes()), "Text to Image")
    await page.evaluate(SET_VALUES, {"model": "starter", "prompt": PROMPT})
    await page.get_by_role("button", name="Run", exact=True).first.click()
    await page.wait_for_function(SHOWS_IMAGE, timeout=60_000)
    await page.screenshot(path=IMAGES / "editor.png")


async def take_publishing(page: Page) -> None:
    """*File › Publish as mode*, and beside it what it says of a small app."""
    await page.set_viewport_size(WINDOW)
    await page.evaluate("graph => app.loadApiJson(graph, 'my-negative')", OWN_MODE)
    await page.evaluate(MAKE_APP)
    await page.locator(".comfy-menu-button-wrapper").first.click()
    await page.get_by_role("menuitem", name="File").hover()
    await page.get_by_role("menuitem", name="Publish as mode").hover()
    await page.wait_for_timeout(FADING_MS)
    menu = await page.screenshot(clip=MENU_SIZE)  # pyright: ignore[reportArgumentType]
    await page.get_by_role("menuitem", name="Publish as mode").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("textbox").fill("my-negative")
    await dialog.get_by_role("textbox").press("Enter")
    await dialog.get_by_text("will take these parameters").wait_for()
    await page.wait_for_timeout(FADING_MS)
    beside_each_other(menu, await dialog.screenshot()).save(IMAGES / "publish-as-mode.jpg", quality=90)


def beside_each_other(*screenshots: bytes) -> Image.Image:
    """One image of several, on the colour of the editor's canvas."""
    images = [Image.open(io.BytesIO(each)).convert("RGB") for each in screenshots]
    height = max(image.height for image in images)
    whole = Image.new("RGB", (sum(image.width + DIALOG_MARGIN for image in images) - DIALOG_MARGIN, height), CANVAS)
    left = 0
    for image in images:
        whole.paste(image, (left, (height - image.height) // 2))
        left += image.width + DIALOG_MARGIN
    return whole


async def take_editor_and_publishing(comfyui_url: str) -> None:
    """Each in a browser of its own, so that neither shows the other's tab."""
    for take in (take_editor, take_publishing):
        async with editor(comfyui_url) as page:
            await take(page)


@contextmanager
def desktop(home: Path) -> Iterator[dict[str, str]]:
    """A desktop session of its own; its environment."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("IMAGEGEN_", "XDG_"))}
    with ExitStack() as stack:
        display = stack.enter_context(x_server())
        environment = {**own, "DISPLAY": display, "GDK_BACKEND": "x11", "GTK_A11Y": "atspi", "GSK_RENDERER": "cairo"}
        environment |= {"HOME": str(home), "XDG_RUNTIME_DIR": str(home), "PYTHONPATH": str(ROOT)}
        environment["DBUS_SESSION_BUS_ADDRESS"] = stack.enter_context(session_bus(environment))
        os.environ.update({name: environment[name] for name in ("DISPLAY", "DBUS_SESSION_BUS_ADDRESS")})
        stack.enter_context(window_manager(environment, home))
        yield environment


def take_overlay(url: str, home: Path) -> None:
    """The generate window with a few images, the last of them shown."""
    with desktop(home) as environment:
        require_gtk()
        import gi

        gi.require_version("Atspi", "2.0")
        command = [sys.executable, "-m", "overlay"]
        running = subprocess.Popen([*command, "--hidden"], env={**environment, "IMAGEGEN_URL": url}, cwd=home)
        try:
            person, hands = Person(APPLICATION), Hands(environment["DISPLAY"])
            subprocess.run(["gdbus", "wait", "--session", "--timeout=30", APPLICATION], env=environment, check=True)
            subprocess.run([*command, "--toggle"], env=environment, cwd=home, check=True)
            person.press("Generate an image")
            person.find("Generate", "push button")
            for prompt in HISTORY:
                person.write("Prompt", prompt)
                person.press("Generate", timeout_s=60)
                person.find(f"{prompt} · ", "label", timeout_s=60)
                person.find("Save", "push button", timeout_s=60)
            left, top = hands.origin(OVERLAY_TITLE)
            shape = hands.windows()[OVERLAY_TITLE].get_geometry()
            box = (left, top, left + shape.width, top + shape.height)
            ImageGrab.grab(box, xdisplay=environment["DISPLAY"]).save(IMAGES / "overlay.png")
        finally:
            running.terminate()
            running.wait(10)


def service() -> Runtime:
    """The service on this machine. Exits with a message if none runs."""
    settings = Settings.from_environment()
    runtime = running_service(settings)
    if runtime is None:
        sys.exit(f"no service runs with the state directory {settings.state_dir}; start it with imagegen up")
    return runtime


def main() -> None:
    """Take all of them."""
    runtime = service()
    with ImageGenClient(runtime.url) as client:
        client.wait_ready(120)
    asyncio.run(take_editor_and_publishing(runtime.comfyui_url))
    with tempfile.TemporaryDirectory() as home:
        take_overlay(runtime.url, Path(home))


if __name__ == "__main__":
    main()
