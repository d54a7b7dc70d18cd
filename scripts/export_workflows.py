#!/usr/bin/env python3
"""`make workflows`: let ComfyUI's own front end write each saved graph in both formats.

Every `workflows/*.json` is opened in the editor of a real ComfyUI, in headless Chromium. What the editor saves goes
back to the same file, and what it would queue goes to `workflows/api/`, with what *Publish as mode* would write of the
app's inputs. A graph without a thumbnail for the template browser gets an image of the canvas; one that shows what the
graph makes is easier to recognize, and stays. `--check` writes nothing and fails if a file differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from difflib import unified_diff
from pathlib import Path
from typing import Any

from playwright.async_api import Page, async_playwright

from bridge.modes.interface import interface_file
from bridge.modes.library import SHIPPED_WORKFLOWS
from bridge.service.children.comfyui import ManagedComfyUI
from bridge.service.installer import find_installation, write_extra_model_paths
from bridge.settings import Settings

CHROMIUM = "/usr/bin/chromium"
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
VIEWPORT = {"width": 1920, "height": 1080}
EDITOR_TIMEOUT_MS = 120_000
THUMBNAIL_WIDTH = 640
QUIET_SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else a first visit opens the template browser over the canvas
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1,  # else small text is left out of the images
}

VIEW = {"scale": 1, "offset": [60, 90]}
"""Opens at full size. Graphs begin near (20, 50), and this leaves room for the editor's bars."""
GROUP_FONT_SIZE = 24
SETTLING_S = 5
"""How long the editor may take to give the nodes of a graph their sizes."""
OPEN_GRAPH = """async ([workflow, title]) => {
    await app.loadGraphData(workflow, true, true, title, {openSource: 'template'});
    await new Promise(done => setTimeout(done, 500));
    // Nodes get their sizes as they are drawn, which takes longer on a busy machine.
    for (let frame = 0; frame < 30; frame++) await new Promise(done => requestAnimationFrame(done));
    const missing = app.graph.nodes.filter(node => node.has_errors || !LiteGraph.registered_node_types[node.type]);
    return missing.map(node => node.type);
}"""
SAVE_GRAPH = """async (name) => {
    const scripts = await (await fetch('/api/extensions')).json();
    const {content, send} = await import(scripts.find(path => path.endsWith('/js/publish.js')));
    const graph = await content();
    return {...graph, plan: await send(name, graph, {dry_run: true})};
}"""
"""The same as Publish as mode, which saves nothing in a dry run."""
SET_VALUES = """(values) => {
    for (const [id, widget, config] of app.graph.extra.linearData.inputs) {
        const name = config?.name ?? widget;
        if (!(name in values)) continue;
        app.graph.getNodeById(id).widgets.find(each => each.name === widget).value = values[name];
    }
}"""
"""Sets inputs of the app that is open, by the names of its fields."""
FIT_VIEW = """async () => {
    app.canvas.deselectAll?.();
    await app.extensionManager.command.execute('Comfy.Canvas.FitView');
    await new Promise(done => setTimeout(done, 1500));
    const boxes = [...app.graph.nodes, ...app.graph.groups].map(item => item.boundingRect);
    const {scale, offset} = app.canvas.ds, canvas = app.canvas.canvas.getBoundingClientRect();
    const [left, top, right, bottom] = [
        Math.min(...boxes.map(box => box[0])), Math.min(...boxes.map(box => box[1])),
        Math.max(...boxes.map(box => box[0] + box[2])), Math.max(...boxes.map(box => box[1] + box[3])),
    ];
    const margin = 12;
    return {
        x: canvas.x + (left + offset[0]) * scale - margin, y: canvas.y + (top + offset[1]) * scale - margin,
        width: (right - left) * scale + 2 * margin, height: (bottom - top) * scale + 2 * margin,
    };
}"""
"""Shows the whole graph; returns where it is on the page."""


@asynccontextmanager
async def editor(url: str, prepare: Callable[[Page], Awaitable[object]] | None = None) -> AsyncIterator[Page]:
    """A page with ComfyUI's editor, ready for use. ``prepare`` gets the page before anything is loaded into it."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        try:
            page = await browser.new_page(viewport=VIEWPORT)  # pyright: ignore[reportArgumentType]
            if prepare is not None:
                await prepare(page)
            for setting, value in QUIET_SETTINGS.items():
                await page.request.post(f"{url}/api/settings/{setting}", data=json.dumps(value))
            await page.goto(url, timeout=EDITOR_TIMEOUT_MS)
            await page.wait_for_function(
                "() => window.app && window.app.graph && window.app.extensionManager"
                " && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100",
                timeout=EDITOR_TIMEOUT_MS,
            )
            await close_banner(page)
            yield page
        finally:
            await browser.close()


async def close_banner(page: Page) -> None:
    """Some front ends announce news over the whole width; it is nothing of ours."""
    banner = page.locator("div", has=page.get_by_role("button", name="Try it out")).last
    if await banner.count():
        await banner.locator("xpath=..").get_by_role("button").last.click()


async def open_graph(page: Page, workflow: dict[str, Any], title: str | None = None) -> None:
    """Open a graph as the template browser does. Raises ValueError where the editor lacks one of its nodes."""
    missing = await page.evaluate(OPEN_GRAPH, [workflow, title])
    if missing:
        raise ValueError(f"the editor does not know the nodes {', '.join(missing)}")


async def save_graph(page: Page, name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    """The open graph as the editor saves it, as it queues it, and its interface, as *Publish as mode* would write it.

    Raises ValueError where it could not be published as it is.
    """
    saved = await page.evaluate(SAVE_GRAPH, name)
    plan = saved["plan"]
    if plan["status"] != 200 or plan["warnings"]:
        raise ValueError(f"{name} cannot be published: {plan.get('error') or plan['warnings']}")
    return stable(saved["workflow"]), saved["api"], plan["interface"]


def stable(workflow: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from one saving or one front end to the next, and need not be in a file.

    That is where the view stands, the editor's version and renderer; values by name beside those in order; empty
    values; the usual size of a group's title; and outputs of nodes that lead nowhere.
    """
    workflow.setdefault("extra", {})["ds"] = VIEW
    workflow.get("extra", {}).pop("frontendVersion", None)
    workflow.get("extra", {}).pop("workflowRendererVersion", None)
    for graph in (workflow, *workflow.get("definitions", {}).get("subgraphs", ())):
        for group in graph.get("groups", ()):
            if group.get("font_size") == GROUP_FONT_SIZE:
                del group["font_size"]
        for node in graph["nodes"]:
            node.pop("widgets_values_named", None)
            if not node.get("widgets_values", True):
                del node["widgets_values"]
            if not any(output.get("links") for output in node.get("outputs", ())):
                node["outputs"] = []  # A newer ComfyUI gives Preview Image an output.
    return workflow


def text(graph: dict[str, Any]) -> str:
    """The file's content: indented, so that a change to the graph is a readable diff."""
    return json.dumps(graph, indent=1, ensure_ascii=False) + "\n"


async def files_of(page: Page, path: Path) -> dict[Path, str]:
    """The files of the open graph, with the content that they should have."""
    workflow, api, interface = await save_graph(page, path.stem)
    files = {path: text(workflow), path.parent / "api" / path.name: text(api)}
    return files if interface is None else {**files, interface_file(path): text(interface)}


def difference(file: Path, content: str) -> list[str]:
    """The lines in which a file and the content that it should have differ."""
    found = file.read_text().splitlines() if file.is_file() else []
    return list(unified_diff(found, content.splitlines(), str(file), "the editor's", lineterm=""))


async def export(page: Page, path: Path, *, check: bool) -> bool:
    """Write one graph's files; with `check`, only say whether they are what would be written."""
    await open_graph(page, json.loads(path.read_bytes()))
    files = await files_of(page, path)
    if check:
        differences: list[str] = []
        for _ in range(SETTLING_S):  # What the editor settles on counts.
            differences = [line for file, content in files.items() for line in difference(file, content)]
            if not differences:
                return True
            await page.wait_for_timeout(1000)
            files = await files_of(page, path)
        print(f"{path} is not what the editor saves; run 'make workflows'", *differences, sep="\n")
        return False
    for file, content in files.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    if not path.with_suffix(".jpg").exists():
        await take_thumbnail(page, path.with_suffix(".jpg"))
    print(path)
    return True


async def take_thumbnail(page: Page, path: Path) -> None:
    """A small image of the graph on its canvas."""
    from PIL import Image

    graph = await page.evaluate(FIT_VIEW)
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        await page.screenshot(path=file.name, clip=graph)
        with Image.open(file.name) as image:
            image.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH))
            image.convert("RGB").save(path, quality=85)


@asynccontextmanager
async def own_comfyui() -> AsyncIterator[str]:
    """A ComfyUI of our own for as long as the export takes; its URL."""
    settings = Settings.from_environment()
    installation = find_installation(settings)
    with tempfile.TemporaryDirectory(prefix="imagegen-workflows-") as folder:
        scratch = Settings(state_dir=Path(folder))
        scratch.make_directories()
        comfyui = ManagedComfyUI(
            installation,
            base_directory=scratch.comfyui_base,
            extra_model_paths=write_extra_model_paths(scratch, installation),
            log_file=scratch.logs / "comfyui.log",
        )
        await comfyui.start()
        try:
            await comfyui.wait_ready()
            yield comfyui.url
        finally:
            await comfyui.stop()


async def run(args: argparse.Namespace) -> int:
    """Export or check every graph; the exit code."""
    async with own_comfyui() as url, editor(url) as page:
        results = [await export(page, path, check=args.check) for path in sorted(SHIPPED_WORKFLOWS.glob("*.json"))]
    return 0 if all(results) else 1


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description="Write every saved graph in both formats, by ComfyUI's own editor.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is stale")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
