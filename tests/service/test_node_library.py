"""What the node library and the canvas show of the pack: blueprints of the common chains, and colours of sockets."""

from __future__ import annotations

import json
from typing import Any

from playwright.async_api import Page

from bridge.modes.library import SHIPPED_WORKFLOWS
from scripts.make_blueprints import BLUEPRINTS, CHAINS, HOST_ID, OUTSIDE, blueprints
from tests.service.conftest import Service
from tests.service.front_ends import on_each

AS_QUEUED = """async (workflow) => {
    await app.loadGraphData(workflow, true, false);
    const host = app.graph.nodes[0];
    return {
        output: (await app.graphToPrompt()).output,
        widgets: host.widgets.map(widget => widget.name), sockets: host.inputs.map(slot => slot.name),
    };
}"""
COLORS = """type => [
    app.canvas.default_connection_color_byType[type], app.canvas.constructor.link_type_colors[type],
    getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${type}`),
]"""


def test_each_blueprint_is_what_its_graph_gives() -> None:
    expected = blueprints()
    assert sorted(BLUEPRINTS.iterdir()) == sorted(expected), "run python -m scripts.make_blueprints"
    for file, content in expected.items():
        assert file.read_text() == content, f"{file.name}: run python -m scripts.make_blueprints"


def inside(name: str) -> dict[str, Any]:
    """What a blueprint holds of its graph, in API format."""
    graph = json.loads((SHIPPED_WORKFLOWS / "api" / f"{name}.json").read_text())
    kept = {key: node for key, node in graph.items() if node["class_type"] not in OUTSIDE}
    return {
        f"{HOST_ID}:{key}": {
            input_name: [f"{HOST_ID}:{value[0]}", value[1]] if isinstance(value, list) else value
            for input_name, value in node["inputs"].items()
            if not isinstance(value, list) or value[0] in kept
        }
        for key, node in kept.items()
    }


@on_each
async def test_the_blueprints_are_in_the_node_library_and_are_queued_as_their_graphs(
    page: Page, service: Service
) -> None:
    listed = await (await page.request.get(f"{service.comfyui_url}/api/global_subgraphs")).json()
    ours = {each["name"] for each in listed.values() if each["info"]["node_pack"] == "custom_nodes.neurolux"}
    assert ours == {file.stem for file in blueprints()}
    for name, content in zip(CHAINS, blueprints().values(), strict=True):
        queued = await page.evaluate(AS_QUEUED, json.loads(content))
        assert {key: node["inputs"] for key, node in queued["output"].items()} == inside(name), name
        interface = json.loads((SHIPPED_WORKFLOWS / "api" / f"{name}.interface.json").read_text())
        offered = [
            one["name"] for one in interface["parameters"] if f"{HOST_ID}:{one['targets'][0][0]}" in inside(name)
        ]
        assert [each for each in queued["widgets"] if each in offered] == offered, name
        assert ("image" in queued["sockets"]) is (name != "text-to-image"), name


@on_each
async def test_our_sockets_have_a_colour_of_their_own_in_both_renderers(page: Page) -> None:
    for socket in ("NEUROLUX_PIPELINE", "NEUROLUX_FILE"):
        colors = await page.evaluate(COLORS, socket)
        assert colors[0], socket
        assert len({color.strip() for color in colors}) == 1, (socket, colors)
