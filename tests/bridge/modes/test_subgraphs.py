"""Parameters inside subgraphs: an image opens in the editor with the values that made it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from bridge.modes.library import read_mode

SHARED, OUTER = "11111111-0000-4000-8000-000000000000", "22222222-0000-4000-8000-000000000000"


def parameter(node_id: int, name: str, value: str, **more: Any) -> dict[str, Any]:
    """A Text Parameter in the editor's format."""
    return {"id": node_id, "type": "NeuroLuxTextParameter", "widgets_values": [name, value, "", False], **more}


def instance(node_id: int, kind: str, **more: Any) -> dict[str, Any]:
    """An instance of a subgraph."""
    return {"id": node_id, "type": kind, "widgets_values": [], **more}


def subgraph(kind: str, *nodes: dict[str, Any], links: list[Any] | None = None) -> dict[str, Any]:
    """A subgraph's definition."""
    return {"id": kind, "name": "some", "nodes": list(nodes), "links": links or []}


def workflow(nodes: list[dict[str, Any]], *subgraphs: dict[str, Any]) -> dict[str, Any]:
    """A workflow with ``subgraphs``."""
    return {"version": 0.4, "nodes": nodes, "links": [], "definitions": {"subgraphs": list(subgraphs)}}


INNER = subgraph(SHARED, parameter(3, "prompt", "a cat"))
SHOWN_LINK = {"id": 9, "origin_id": -10, "origin_slot": 1, "target_id": 3, "target_slot": 1, "type": "STRING"}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "in a subgraph": (workflow([instance(12, SHARED)], INNER), "12:3"),
    "in a subgraph of a subgraph": (
        workflow([instance(12, OUTER)], subgraph(OUTER, instance(5, SHARED)), INNER), "12:5:3",
    ),
    "in one of two instances": (workflow([instance(12, SHARED), instance(13, SHARED)], INNER), "13:3"),
    "in an instance that another subgraph shares": (
        workflow([instance(12, OUTER), instance(13, SHARED)], subgraph(OUTER, instance(5, SHARED)), INNER), "12:5:3",
    ),
    "shown on the instance": (
        workflow(
            [
                instance(
                    12, SHARED, widgets_values=[7, "a cat"],
                    inputs=[{"name": name, "widget": {"name": name}} for name in ("count", "value")],
                )
            ],
            subgraph(
                SHARED, parameter(3, "prompt", "a cat", inputs=[{"name": "value", "link": 9}]), links=[SHOWN_LINK],
            ),
        ),
        "12:3",
    ),
}  # fmt: skip


def opened_value(flow: dict[str, Any], path: str) -> list[Any]:
    """What the editor shows of the parameter at ``path``."""
    subgraphs = {one["id"]: one for one in flow["definitions"]["subgraphs"]}
    *instances, last = path.split(":")
    owner = flow
    for step in instances:
        owner = subgraphs[next(node for node in owner["nodes"] if str(node["id"]) == step)["type"]]
    return next(node for node in owner["nodes"] if str(node["id"]) == last)["widgets_values"]


@pytest.mark.parametrize("case", CASES)
def test_a_parameter_in_a_subgraph_is_filled_in(case: str) -> None:
    flow, path = copy.deepcopy(CASES[case])
    graph = {
        path: {
            "class_type": "NeuroLuxTextParameter",
            "inputs": {"name": "prompt", "value": "a cat", "description": ""},
        },
        "1": {"class_type": "NeuroLuxResult", "inputs": {"name": "images", "images": [path, 0]}},
    }
    mode = read_mode("paint", flow, graph)
    bound, opened = mode.bind({"prompt": "a dog"})
    assert bound[path]["inputs"]["value"] == "a dog"
    assert opened_value(opened, path)[:2] == ["prompt", "a dog"]
    assert mode.workflow == CASES[case][0]
    assert mode.bind({"prompt": "a dog"})[1] == opened
    if case == "in one of two instances":
        assert opened_value(opened, "12:3")[:2] == ["prompt", "a cat"]
        assert len({one["id"] for one in opened["definitions"]["subgraphs"]}) == 2
    if case == "in an instance that another subgraph shares":
        assert opened_value(opened, "13:3")[:2] == ["prompt", "a cat"]
    if case == "shown on the instance":
        assert opened["nodes"][0]["widgets_values"] == [7, "a dog"]


def test_damaged_subgraphs_do_not_matter() -> None:
    graph = {
        "12:3": {"class_type": "NeuroLuxTextParameter", "inputs": {"name": "prompt", "value": "a", "description": ""}},
        "1": {"class_type": "NeuroLuxResult", "inputs": {"name": "images", "images": ["12:3", 0]}},
    }
    for definitions in (None, [], {"subgraphs": None}, {"subgraphs": []}):
        flow = {"nodes": [instance(12, SHARED)], "definitions": definitions}
        assert read_mode("paint", flow, graph).bind({"prompt": "a dog"})[1] == flow
