"""Values in a graph in the editor's format, so that an image dropped on the editor opens the graph that made it.

A node inside a subgraph is named by its path, such as `12:3`: node 3 of the subgraph that node 12 is an instance of.
The subgraph itself is in `definitions`, where several instances may share it.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from typing import Any

INPUT_NODE = -10
"""The editor's id of the node from which a subgraph's own inputs come."""
Workflow = dict[str, Any]


def set_value(workflow: Workflow, node_id: str, key: str, index: int, value: Any) -> None:
    """Set the widget `key`, the `index`th of node `node_id`; nothing happens if the node is not in the workflow."""
    *instances, last = node_id.split(":")
    owner: Workflow = workflow
    instance: dict[str, Any] | None = None
    for place, name in enumerate(instances):
        instance = _node(owner, name)
        definition = None if instance is None else _definition(workflow, instance.get("type"))
        if instance is None or definition is None:
            return
        owner = _own(workflow, instance, definition, ":".join(instances[: place + 1]))
    node = _node(owner, last)
    if node is None:
        return
    outer = None if instance is None else _outer_widget(owner, node, key, instance)
    if outer is not None:
        _set_widget(*outer, value)
    _set_widget(node, index, key, value)


def _node(owner: Workflow, node_id: str) -> dict[str, Any] | None:
    """The node of that id in a workflow or a subgraph."""
    return next((node for node in owner.get("nodes", []) if str(node.get("id")) == node_id), None)


def _definitions(workflow: Workflow) -> list[Workflow]:
    found = workflow.get("definitions")
    subgraphs = found.get("subgraphs") if isinstance(found, dict) else None
    return subgraphs if isinstance(subgraphs, list) else []


def _definition(workflow: Workflow, kind: Any) -> Workflow | None:
    """The subgraph that a node of type `kind` is an instance of."""
    return next((one for one in _definitions(workflow) if one.get("id") == kind), None)


def _all_nodes(workflow: Workflow) -> Iterator[dict[str, Any]]:
    """The nodes of the workflow and of all its subgraphs."""
    for owner in (workflow, *_definitions(workflow)):
        yield from owner.get("nodes", [])


def _own(workflow: Workflow, instance: dict[str, Any], definition: Workflow, path: str) -> Workflow:
    """The subgraph of `instance`, which no other instance shares: else a copy that the instance then belongs to.

    The copy's id follows from the path, so that the same request gives the same file.
    """
    if sum(node.get("type") == definition["id"] for node in _all_nodes(workflow)) == 1:
        return definition
    own = copy.deepcopy(definition)
    own["id"] = instance["type"] = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{definition['id']} {path}"))
    _definitions(workflow).append(own)
    return own


def _outer_widget(
    owner: Workflow, node: dict[str, Any], key: str, instance: dict[str, Any]
) -> tuple[dict[str, Any], int, str] | None:
    """Where the instance itself shows the widget `key` of `node`: the instance, the widget's index, and its name."""
    link_id = next((slot.get("link") for slot in node.get("inputs") or [] if slot.get("name") == key), None)
    links = [one for one in owner.get("links", []) if isinstance(one, dict)]
    link = None if link_id is None else next((one for one in links if one.get("id") == link_id), None)
    if link is None or link.get("origin_id") != INPUT_NODE:
        return None
    inputs = instance.get("inputs") or []
    slot = link.get("origin_slot", -1)
    if not 0 <= slot < len(inputs) or "widget" not in inputs[slot]:
        return None
    widgets = [one for one in inputs if "widget" in one]
    return instance, widgets.index(inputs[slot]), str(inputs[slot].get("name"))


def _set_widget(node: dict[str, Any], index: int, key: str, value: Any) -> None:
    """Set one of a node's widgets, which older editors save in a list and some newer ones also by name."""
    widgets = node.get("widgets_values")
    if isinstance(widgets, list) and len(widgets) > index:
        widgets[index] = value
    elif isinstance(widgets, dict):
        widgets[key] = value
    named = node.get("widgets_values_named")
    if isinstance(named, dict) and key in named:
        named[key] = value
