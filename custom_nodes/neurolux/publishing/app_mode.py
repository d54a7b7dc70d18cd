"""ComfyUI's App Mode: which widgets of a workflow its author chose as inputs, and which nodes as outputs.

The choice is in ``extra.linearData`` of the editor's format. Files of today hold four forms of ids, mixed:

- a node's id, number or text: ``[6, "steps"]``;
- ``graph UUID:node id:widget name``, the last two URL-encoded; the second element is only shown;
- ``subgraph UUID:node id`` of an instance, and the name of one of its widgets;
- the id of a node inside a subgraph, from before subgraphs had widgets of their own.

Official templates hold entries whose node is long gone: an entry that leads nowhere is left out with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from .editor_graph import EditorGraph, Place, Widget

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True)
class AppInput:
    """A widget that its author chose as an input. ``widgets`` are those that it sets in the graph that runs."""

    name: str
    label: str
    title: str
    """Of the node that shows it."""
    place: str
    """The id of that node."""
    widgets: tuple[Widget, ...]
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AppMode:
    """What a workflow says of itself as an app. ``outputs`` are ids of nodes, in order."""

    inputs: tuple[AppInput, ...]
    outputs: tuple[str, ...]
    warnings: tuple[str, ...]


def read_app_mode(workflow: dict[str, Any], graph: Mapping[str, Any]) -> AppMode | None:
    """The inputs and outputs of a workflow; None if nobody chose any.

    :param graph: The same graph in API format. What it lacks is muted, bypassed or gone.
    """
    extra = workflow.get("extra")
    data = extra.get("linearData") if isinstance(extra, dict) else None
    if not isinstance(data, dict) or not (data.get("inputs") or data.get("outputs")):
        return None
    editor = EditorGraph(workflow)
    inputs: list[AppInput] = []
    warnings: list[str] = []
    for entry in _list(data.get("inputs")):
        try:
            found = _read_input(editor, graph, entry)
        except ValueError as error:
            warnings.append(str(error))
            continue
        if not any(set(found.widgets) & set(other.widgets) for other in inputs):
            inputs.append(found)
    outputs = dict.fromkeys(str(each) for each in _list(data.get("outputs")))
    for node_id in [node_id for node_id in outputs if node_id not in graph]:
        warnings.append(f"the app's output node {node_id} is not in the graph that runs")
        del outputs[node_id]
    return AppMode(tuple(inputs), tuple(outputs), tuple(warnings))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _read_input(editor: EditorGraph, graph: Mapping[str, Any], entry: Any) -> AppInput:
    """Raises ValueError for an entry that leads to nothing a request could set."""
    if not isinstance(entry, list) or len(entry) < 2 or not isinstance(entry[0], str | int):
        raise ValueError(f"the app's input {entry!r} has a form that is not known")
    config = entry[2] if len(entry) > 2 and isinstance(entry[2], dict) else {}
    place, name = _find(editor, str(entry[0]), str(entry[1]))
    if place is None:
        raise ValueError(f"the app's input {name!r} is of node {entry[0]}, which is not there any more")
    widgets = editor.widgets(place, name)
    shown = f"the app's input {name!r} of node {place.node_id} ({place.title})"
    if not widgets:
        raise ValueError(f"{shown} leads to no widget")
    for widget in widgets:
        node = graph.get(widget.node_id)
        if not isinstance(node, dict):
            raise ValueError(f"{shown} is muted, bypassed or gone")
        if widget.name not in node.get("inputs", {}):
            raise ValueError(f"{shown} is no value of {node.get('class_type')}")
        if isinstance(node["inputs"][widget.name], list):
            raise ValueError(f"{shown} gets its value from another node")
    return AppInput(name, editor.label(place, name), place.title, place.node_id, tuple(widgets), config)


def _find(editor: EditorGraph, key: str, name: str) -> tuple[Place | None, str]:
    """The node that an entry means, and the name of its widget."""
    first, *rest = key.split(":")
    if _UUID.fullmatch(first) and rest:
        node_id = unquote(rest[0])
        if len(rest) > 1:
            name = unquote(":".join(rest[1:]))
        path = tuple(node_id.split(":"))
    else:
        path = (first, *rest)
    if (place := editor.at(*path)) is not None:
        return place, name
    # A node inside a subgraph, named without the way to it. Several instances leave open which is meant.
    hits = [each for each in editor.instances() if each.path[-1] == path[-1] and editor.has_widget(each, name)]
    return (hits[0], name) if len(hits) == 1 else (None, name)
