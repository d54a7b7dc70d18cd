"""Measures an open graph in the editor: it can be read at full size, no node lies on another, its app is whole."""

from __future__ import annotations

from typing import Any

from playwright.async_api import Page, ViewportSize

WINDOW = ViewportSize(width=1600, height=1000)
BARS = (70, 80)
"""Where the editor's bars at the left and at the top end."""
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
APP_VIEW = """() => {
    const shown = id => [...document.querySelectorAll(`[data-testid=${id}]`)].filter(each => each.checkVisibility());
    const control = 'input, textarea, button:not([data-testid=widget-actions-menu])';
    return {
        fields: shown('app-mode-widget-item').map(item => [
            item.querySelector('[data-testid=builder-widget-label]').innerText.trim(),
            [...item.querySelectorAll(control)].some(each => each.checkVisibility()),
        ]),
        run: shown('linear-run-button').some(each => [...each.querySelectorAll('button')].some(
            button => button.innerText.trim() === 'Run' && !button.disabled,
        )),
    };
}"""
"""What the app view shows: the label of each field and whether there is anything to fill in, and a Run button."""
APP_SHOWN = "() => document.querySelector('[data-testid=linear-run-button]')"
SWITCH_TO_APP_OR_BACK = "() => app.extensionManager.command.execute('Comfy.ToggleLinear')"
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


def crowded(found: dict[str, Any]) -> list[str]:
    """The nodes that overlap or leave their group, in a graph as ``MEASURE`` found it."""
    problems = on_each_other(found["nodes"])
    for group in found["groups"]:
        left, top, width, height = group["box"]
        crossing = [node for node in found["nodes"] if overlaps(node["box"], group["box"])]
        problems += [
            f"{node['title']} leaves the group {group['title']}"
            for node in crossing
            if not inside(node["box"], left, top, left + width, top + height)
        ]
    return problems


async def layout_problems(page: Page, name: str) -> list[str]:
    """What is wrong with the open graph, as the classic canvas shows it in a window of 1600 x 1000."""
    found: dict[str, Any] = await page.evaluate(MEASURE)
    nodes, app = found["nodes"], found["app"] or {}
    problems = crowded(found)
    if found["scale"] != 1:
        problems.append(f"it opens at {found['scale']:.0%}")
    if name not in ("grid", "train-lora") and len(nodes) > FEWER.get(name, MOST_NODES):
        problems.append(f"it has {len(nodes)} nodes")
    problems += [f"{node['title']} is out of sight" for node in nodes if not inside(node["box"], *found["shown"])]
    for node in nodes:
        if node["spare"] < GROWS.get(node["type"], 0):
            problems.append(f"{node['title']} has {node['spare']:.0f} for what it shows")
    if not (app.get("inputs") and app.get("outputs")) or found["opensAsApp"] is not False:
        problems.append("it is no app that opens as a graph")
    return [f"{name}: {problem}" for problem in problems]


async def nodes_2_problems(page: Page, name: str) -> list[str]:
    """What is wrong with the graph that was just opened, as Nodes 2.0 draws it in a window of 1600 x 1000."""
    await page.wait_for_function(DRAWN, timeout=60_000)
    found: dict[str, Any] = await page.evaluate(MEASURE)
    boxes: list[dict[str, Any]] = await page.evaluate(BOXES)
    problems = on_each_other(boxes)
    if found["scale"] != 1:
        problems.append(f"it opens at {found['scale']:.0%}")
    edges = (*BARS, WINDOW["width"], WINDOW["height"])
    problems += [f"{node['title']} is out of sight" for node in boxes if not inside(node["box"], *edges)]
    return [f"{name} in Nodes 2.0: {problem}" for problem in problems]


async def app_problems(page: Page, name: str, workflow: dict[str, Any]) -> list[str]:
    """Where the app view of the open graph differs from the inputs that the file lists."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    wanted = [label(nodes[node], widget) for node, widget, *_ in workflow["extra"]["linearData"]["inputs"]]
    await page.evaluate(SWITCH_TO_APP_OR_BACK)
    try:
        await page.wait_for_function(APP_SHOWN, timeout=60_000)
        found: dict[str, Any] = await page.evaluate(APP_VIEW)
    finally:
        await page.evaluate(SWITCH_TO_APP_OR_BACK)
    labels = [label for label, _ in found["fields"]]
    problems = [f"{label} has nothing to fill in" for label, control in found["fields"] if not control]
    if labels != wanted:
        problems.append(f"it shows {labels}, not {wanted}")
    if not found["run"]:
        problems.append("it has no Run button")
    return [f"{name} as an app: {problem}" for problem in problems]


def label(node: dict[str, Any], widget: str) -> str:
    """What the editor calls a widget: its label, or its name in words."""
    [slot] = [each for each in node["inputs"] if (each.get("widget") or {}).get("name") == widget]
    return slot.get("label") or widget.replace("_", " ")
