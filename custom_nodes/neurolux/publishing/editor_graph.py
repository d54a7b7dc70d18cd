"""A graph as the editor saves it: where the widget that a person sees on a node is in the graph that runs.

A node inside a subgraph is named by its path in API format, such as ``12:3``: node 3 of the subgraph that node 12 is an
instance of. An instance shows widgets of its inner nodes as its own. The front end has saved that in two ways: as
inputs of the instance whose links lead inside, and, earlier, as a list of proxies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NodeRecord = dict[str, Any]
INPUT_NODE = "-10"
"""The editor's id of the node from which a subgraph's own inputs come."""
OWN_SLOT = "-1"
"""In a list of proxies: the instance's own input."""


@dataclass(frozen=True)
class Widget:
    """A widget of a node in the graph that runs. ``node_id`` is its id in API format."""

    node_id: str
    name: str


@dataclass(frozen=True)
class Place:
    """A node as the editor shows it, and the path of ids that leads to it."""

    path: tuple[str, ...]
    node: NodeRecord

    @property
    def node_id(self) -> str:
        """Its id in API format."""
        return ":".join(self.path)

    @property
    def title(self) -> str:
        """The title that its author gave it, else its class."""
        return str(self.node.get("title") or self.node.get("type") or "")


class EditorGraph:
    """A saved workflow. Nothing in it is trusted: what has another form is not found."""

    def __init__(self, workflow: dict[str, Any]) -> None:
        self.workflow = workflow
        self._definitions = {
            str(each.get("id")): each for each in _records(_record(workflow.get("definitions")).get("subgraphs"))
        }

    def at(self, *path: str) -> Place | None:
        """The node at a path of ids."""
        owner: dict[str, Any] | None = self.workflow
        node: NodeRecord | None = None
        for node_id in path:
            node = _node(owner, node_id) if owner is not None else None
            if node is None:
                return None
            owner = self.definition(node)
        return Place(path, node) if node is not None else None

    def definition(self, node: NodeRecord) -> dict[str, Any] | None:
        """The subgraph of which the node is an instance."""
        return self._definitions.get(str(node.get("type")))

    def instances(self) -> Iterator[Place]:
        """Every node of every subgraph that is in use, by each path that leads to it."""
        waiting: list[tuple[tuple[str, ...], dict[str, Any]]] = [((), self.workflow)]
        while waiting:
            path, owner = waiting.pop()
            for node in _records(owner.get("nodes")):
                place = Place((*path, str(node.get("id"))), node)
                if path:
                    yield place
                inner = self.definition(node)
                if inner is not None and len(path) < len(self._definitions) + 1:  # No subgraph contains itself.
                    waiting.append((place.path, inner))

    def has_widget(self, place: Place, name: str) -> bool:
        """Whether the node shows a widget of that name. Plain nodes list their widgets among their inputs."""
        if self._slot(place.node, name) is not None:
            return True
        return any(proxy[1] == name for proxy in _proxies(place.node))

    def widgets(self, place: Place, name: str) -> list[Widget]:
        """The widgets of the graph that runs which the widget ``name`` of a node sets. Empty: there is none."""
        definition = self.definition(place.node)
        if definition is None:
            return [Widget(place.node_id, name)]
        found: list[Widget] = []
        for path, inner_name in self._promoted(place, definition, name):
            if (inner := self.at(*path)) is not None:
                found += [each for each in self.widgets(inner, inner_name) if each not in found]
        return found

    def label(self, place: Place, name: str) -> str:
        """The name that a person gave to a widget, as it is shown; empty if it has its own."""
        slot = self._slot(place.node, name)
        if slot is not None and slot.get("label"):
            return str(slot["label"])
        definition = self.definition(place.node)
        inputs = _records(definition.get("inputs")) if definition is not None else []
        return next((str(one["label"]) for one in inputs if one.get("name") == name and one.get("label")), "")

    def _slot(self, node: NodeRecord, name: str) -> dict[str, Any] | None:
        for slot in _records(node.get("inputs")):
            if _record(slot.get("widget")).get("name", slot.get("name") if "widget" in slot else None) == name:
                return slot
        return None

    def _promoted(self, place: Place, definition: dict[str, Any], name: str) -> Iterator[tuple[tuple[str, ...], str]]:
        """The inner widgets, one level down, that an instance shows as ``name``."""
        inputs = _records(definition.get("inputs"))
        position = next((n for n, one in enumerate(inputs) if one.get("name") == name), None)
        if position is not None:
            for link in _records(definition.get("links")):
                if str(link.get("origin_id")) == INPUT_NODE and link.get("origin_slot") == position:
                    node_id = str(link.get("target_id"))
                    inner = _node(definition, node_id)
                    slots = _records(inner.get("inputs")) if inner is not None else []
                    target = link.get("target_slot")
                    if isinstance(target, int) and 0 <= target < len(slots):
                        slot = slots[target]
                        yield (*place.path, node_id), str(_record(slot.get("widget")).get("name") or slot.get("name"))
            return
        for node_id, inner_name in _proxies(place.node):
            if inner_name == name and node_id != OWN_SLOT:
                yield (*place.path, node_id), inner_name


def _proxies(node: NodeRecord) -> list[tuple[str, str]]:
    found = _record(node.get("properties")).get("proxyWidgets")
    pairs = found if isinstance(found, list) else []
    return [(str(pair[0]), str(pair[1])) for pair in pairs if isinstance(pair, list) and len(pair) >= 2]


def _node(owner: dict[str, Any] | None, node_id: str) -> NodeRecord | None:
    nodes = _records(owner.get("nodes")) if owner is not None else []
    return next((node for node in nodes if str(node.get("id")) == node_id), None)


def _record(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _records(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
