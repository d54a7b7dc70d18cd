"""What the front ends of different ComfyUIs save of one graph is one file."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.export_workflows import VIEW, stable

PREVIEW = {"id": 1, "type": "PreviewImage", "outputs": []}
NOTE = {"id": 2, "type": "Note", "outputs": [], "widgets_values": ["text"]}
LOAD = {"id": 3, "type": "Load", "outputs": [{"name": "a", "links": None}, {"name": "b", "links": [4]}]}
GROUP = {"title": "Group", "flags": {}}
OWN_ID = "93169a5b-9315-4cec-90ff-792b102c018c"
PINNED = {"id": OWN_ID, "nodes": [PREVIEW, NOTE, LOAD], "groups": [GROUP], "extra": {"ds": VIEW}}
INNER = {"name": "inner", "nodes": [NOTE]}


@pytest.mark.parametrize(
    "saved",
    [
        pytest.param({}, id="as the pinned one saves it"),
        pytest.param({"extra": {}}, id="no view"),
        pytest.param({"extra": {"workflowRendererVersion": "LG"}}, id="the renderer"),
        pytest.param({"extra": {"ds": {"scale": 1}, "frontendVersion": "1.49.6"}}, id="view and version"),
        pytest.param({"nodes": [PREVIEW, {**NOTE, "widgets_values_named": {"text": "text"}}, LOAD]}, id="named values"),
        pytest.param({"nodes": [{**PREVIEW, "widgets_values": []}, NOTE, LOAD]}, id="no values"),
        pytest.param(
            {"nodes": [{**PREVIEW, "outputs": [{"name": "images", "links": None}]}, NOTE, LOAD]}, id="a new output"
        ),
        pytest.param({"groups": [{**GROUP, "font_size": 24}]}, id="the size of titles"),
    ],
)
def test_one_graph_is_one_file(saved: dict[str, Any]) -> None:
    assert stable({**PINNED, **saved}) == PINNED


def test_nodes_in_subgraphs_too() -> None:
    saved = {**PINNED, "definitions": {"subgraphs": [{**INNER, "nodes": [{**NOTE, "widgets_values_named": {}}]}]}}
    assert stable(saved) == {**PINNED, "definitions": {"subgraphs": [INNER]}}
