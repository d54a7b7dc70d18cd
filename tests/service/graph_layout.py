"""Measures an open graph in the editor: all of it can be read at full size, and no node lies on another."""

from __future__ import annotations

from typing import Any

from playwright.async_api import Page, ViewportSize

WINDOW = ViewportSize(width=1600, height=1000)
MOST_NODES = 14
FEWER = {"text-to-image": 8}
MEASURE = """() => {
    const canvas = app.canvas, {scale, offset} = canvas.ds;
    const [left, top, right, bottom] = [70, 80, window.innerWidth, window.innerHeight];  // between the editor's bars
    return {
        scale,
        shown: [
            left / scale - offset[0], top / scale - offset[1], right / scale - offset[0], bottom / scale - offset[1],
        ],
        nodes: app.graph.nodes.map(node => ({
            id: node.id, title: node.title, type: node.type, box: [...node.boundingRect],
            spare: node.size[1] - node.computeSize()[1], width: node.size[0],
        })),
        groups: app.graph.groups.map(group => ({title: group.title, box: [...group.boundingRect]})),
        id: app.graph.id, app: app.graph.extra.linearData, opensAsApp: app.graph.extra.linearMode,
    };
}"""
BOXES = """() => [...document.querySelectorAll('[data-node-id]')].map(element => {
    const {x, y, width, height} = element.getBoundingClientRect();
    const node = app.graph.getNodeById(element.dataset.nodeId);
    return {title: node?.title, box: [x, y, width, height].map(length => length / app.canvas.ds.scale)};
})"""
"""What Nodes 2.0 draws, which are elements of the page."""
DRAWN = "() => document.querySelectorAll('[data-node-id]').length >= app.graph.nodes.length"
NODES_2 = """on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"""
GROWS = {
    "NeuroLuxSample": 200,
    "NeuroLuxSampleVideo": 200,
    "NeuroLuxRefineInTiles": 200,
    "NeuroLuxGenerateBatch": 200,
    "NeuroLuxGenerateGrid": 200,
    "NeuroLuxResult": 160,
    "NeuroLuxVideoResult": 160,
    "PreviewImage": 160,
    "NeuroLuxLoadImage": 100,
    "NeuroLuxLoadModel": 60,
    "NeuroLuxApplyControlNet": 40,
    "NeuroLuxTrainingImages": 40,
    "NeuroLuxFileResult": 40,
}
"""The height that a node needs for what it shows while or after it runs: an image, a preview, a text."""


def overlaps(one: list[float], other: list[float]) -> bool:
    """Whether two boxes (left, top, width, height) share an area that can be seen."""
    return all(
        one[axis] + 1 < other[axis] + other[axis + 2] and other[axis] + 1 < one[axis] + one[axis + 2] for axis in (0, 1)
    )


def inside(box: list[float], left: float, top: float, right: float, bottom: float) -> bool:
    """Whether a box (left, top, width, height) is within these edges."""
    return box[0] >= left and box[1] >= top and box[0] + box[2] <= right and box[1] + box[3] <= bottom


def on_each_other(nodes: list[dict[str, Any]]) -> list[str]:
    """The nodes that overlap."""
    return [
        f"{one['title']} overlaps {other['title']}"
        for number, one in enumerate(nodes)
        for other in nodes[:number]
        if overlaps(one["box"], other["box"])
    ]


async def layout_problems(page: Page, name: str) -> list[str]:
    """What is wrong with the open graph, as the classic canvas shows it in a window of 1600 x 1000."""
    found: dict[str, Any] = await page.evaluate(MEASURE)
    nodes, app = found["nodes"], found["app"] or {}
    problems = on_each_other(nodes)
    if found["scale"] != 1:
        problems.append(f"it opens at {found['scale']:.0%}")
    if name not in ("grid", "train-lora") and len(nodes) > FEWER.get(name, MOST_NODES):
        problems.append(f"it has {len(nodes)} nodes")
    problems += [f"{node['title']} is out of sight" for node in nodes if not inside(node["box"], *found["shown"])]
    for node in nodes:
        if node["spare"] < GROWS.get(node["type"], 0):
            problems.append(f"{node['title']} has {node['spare']:.0f} for what it shows")
    for group in found["groups"]:
        left, top, width, height = group["box"]
        crossing = [node["title"] for node in nodes if overlaps(node["box"], group["box"])]
        within = [node["title"] for node in nodes if inside(node["box"], left, top, left + width, top + height)]
        problems += [f"{title} leaves the group {group['title']}" for title in crossing if title not in within]
    if not (app.get("inputs") and app.get("outputs")) or found["opensAsApp"] is not False:
        problems.append("it is no app that opens as a graph")
    return [f"{name}: {problem}" for problem in problems]


async def nodes_2_problems(page: Page, name: str) -> list[str]:
    """What lies on each other in the open graph as Nodes 2.0 draws it."""
    await page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    await page.wait_for_function(DRAWN, timeout=60_000)
    boxes: list[dict[str, Any]] = await page.evaluate(BOXES)
    none = [] if boxes else ["nothing is drawn"]
    return [f"{name} in Nodes 2.0: {problem}" for problem in (*none, *on_each_other(boxes))]
