"""The workflow library: saved graphs, their parameters, and filling in the values of a request.

A mode is a pair of files: `<name>.json` as the editor saves it, and `api/<name>.json`, the same graph as ComfyUI's
front end exports it for `/prompt`. A `<name>.json` in the second format is a mode by itself. The boundary nodes of the
graph (`NeuroLux…Parameter`) are the parameters, and its result nodes the results. Publishing adds a third file, what an
author chose in ComfyUI's App Mode: `bridge.modes.interface`. The first heading and paragraph of the first note on the
canvas are the title and description.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from bridge.contract import BridgeError, UnknownMode, shorten, shown
from bridge.modes.editor_values import set_value
from bridge.modes.graphs import Graph
from bridge.modes.interface import Interface, interface_file, read_interface
from bridge.modes.parameters import PARAMETER_CLASSES, RESERVED, Parameter, ParameterKind, read_parameter

SHIPPED_WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
RESULT_CLASSES = ("NeuroLuxResult", "NeuroLuxVideoResult", "NeuroLuxFileResult")
"""Node classes whose output is `{"images": [{"filename", "subfolder", "type"}]}`, whatever the files are."""
PACK_PREFIX = "NeuroLux"
"""The prefix of the node pack's classes."""
ANY_MODEL = "starter"
"""The model that every installation has. A graph saved with it runs with the default model; a graph saved with another
model keeps that."""
NOTE_CLASSES = ("MarkdownNote", "Note")
REPLACED = "\ufffd"
"""Stands for what is not text in the name of a file."""
LARGEST_BYTES = 64 * 1024 * 1024
MOST_NESTED = 100
"""Levels of a graph's JSON. The editor writes about ten."""
NAMES_CHARS = 1000
"""The most characters of a list of modes in an error."""


class BrokenMode(BridgeError):
    """A file of the mode cannot be read, or its graph is invalid."""

    status, code = 503, "broken_mode"


@dataclass(frozen=True)
class Mode:
    """One saved graph: `graph` in the format of `/prompt`, `workflow` in the format of the editor."""

    name: str
    title: str
    description: str
    parameters: Mapping[str, Parameter]
    results: tuple[str, ...]
    graph: Graph
    workflow: dict[str, Any]
    result_names: Mapping[str, str] = field(default_factory=dict)
    """Names of results that were frozen when the graph was published; Result nodes have their own."""

    def result_name(self, node_id: str) -> str:
        """The name of a result in the answer: that of its node, or the node's id if the name is linked."""
        if node_id in self.result_names:
            return self.result_names[node_id]
        name = self.graph[node_id]["inputs"].get("name")
        return name if isinstance(name, str) and name else node_id

    @property
    def takes_model(self) -> bool:
        """Whether `model` names a model of the node pack, and not a file for another loader."""
        if "model" not in self.parameters:
            return False
        targets = self._widgets(self.parameters["model"])
        return not targets or any(class_type.startswith(PACK_PREFIX) for class_type, _ in targets)

    @property
    def own_model(self) -> str | None:
        """The model for requests that name none; None: the default model."""
        saved = self.parameters["model"].default if self.takes_model else None
        return saved if isinstance(saved, str) and saved not in ("", ANY_MODEL) else None

    @property
    def seeds(self) -> list[str]:
        """Parameters that are random if a request leaves them out."""
        return [name for name, each in self.parameters.items() if each.kind is ParameterKind.SEED or name == "seed"]

    @property
    def left_open(self) -> list[str]:
        """Parameters that take another value than the graph's if a request leaves them out."""
        return [*self.seeds, *(["model"] if self.takes_model and self.own_model is None else [])]

    def links(self) -> dict[str, list[tuple[str, str]]]:
        """By parameter: the widgets (node class, input) that a choice without own options sets."""
        open_choices = {
            name: self._widgets(parameter)
            for name, parameter in self.parameters.items()
            if parameter.kind is ParameterKind.CHOICE and not parameter.choices
        }
        if self.takes_model:
            open_choices.pop("model", None)  # The list of models has these, with more detail.
        return {name: targets for name, targets in open_choices.items() if targets}

    def _widgets(self, parameter: Parameter) -> list[tuple[str, str]]:
        """The widgets, as node class and input, that get the parameter's value."""
        if not parameter.node_id:
            return [(self.graph[node_id]["class_type"], key) for node_id, key in parameter.targets]
        return [
            (node["class_type"], key)
            for node in self.graph.values()
            for key, value in node["inputs"].items()
            if isinstance(value, list) and value[:1] == [parameter.node_id]
        ]

    def offering(self, offered: Mapping[str, tuple[str, ...]]) -> Mode:
        """The same mode with the options that ComfyUI offers for its choices."""
        parameters = {
            name: replace(parameter, offered=offered[name]) if name in offered else parameter
            for name, parameter in self.parameters.items()
        }
        return replace(self, parameters=parameters)

    def json_schema(self) -> dict[str, JsonValue]:
        """The parameters as JSON Schema."""
        return {
            "title": self.title,
            "description": self.description,
            "type": "object",
            "properties": {name: parameter.json_schema() for name, parameter in self.parameters.items()},
            "required": [name for name, parameter in self.parameters.items() if parameter.required],
            "additionalProperties": False,
        }

    def bind(self, values: Mapping[str, JsonValue]) -> tuple[Graph, dict[str, Any]]:
        """Both formats of the graph with `values` filled in. Other parameters keep their saved values.

        The editor's format is filled in too, so that an image dropped on the editor opens the graph that made it.
        Raises BrokenMode if the graph has no such parameter any more.
        """
        graph, workflow = copy.deepcopy(self.graph), copy.deepcopy(self.workflow)
        for name, value in values.items():
            parameter = self.parameters.get(name)
            if parameter is None:
                raise BrokenMode(
                    f"mode {self.name!r} no longer has the parameter {name!r}: its file changed after the job was "
                    "accepted; send the request again"
                )
            for node_id, key in parameter.targets:
                graph[node_id]["inputs"][key] = value
            for node_id, key, index in parameter.places:
                set_value(workflow, node_id, key, index, value)
        return graph, workflow


class ModeLibrary:
    """The modes in some folders, read again when a file changes. A mode in a later folder hides one in an earlier."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(folders)
        self._read: dict[Path, tuple[tuple[int, ...], Mode]] = {}

    def names(self) -> list[str]:
        """The names of all modes, including broken ones."""
        return sorted({_shown(path.stem) for folder in self._folders for path in _files(folder)})

    def version(self) -> tuple[tuple[str | int, ...], ...]:
        """A value that changes when any file of any mode changes, appears or disappears."""
        paths = sorted(path for folder in self._folders for path in _files(folder))
        return tuple(
            (str(path), *_stamp(path), *_stamp(path.parent / "api" / path.name), *_stamp(interface_file(path)))
            for path in paths
        )

    def get(self, name: str) -> Mode:
        """The mode of that name. Raises UnknownMode or BrokenMode."""
        if Path(name).name == name:  # The name must not lead out of the folders.
            for folder in reversed(self._folders):
                if os.path.lexists(path := folder / f"{name}.json"):
                    return self._load(path)
            if REPLACED in name and name in self.names():
                raise BrokenMode(f"mode {shown(name)} cannot be used: the name of its file is not UTF-8; rename it")
        names = shorten(", ".join(self.names()), NAMES_CHARS)
        raise UnknownMode(f"no mode is called {shown(name)}; available: {names or 'none'}", field="mode")

    def _load(self, path: Path) -> Mode:
        api_path = path.parent / "api" / path.name
        try:
            version = (*_stamp(path), *_stamp(api_path), *_stamp(interface_file(path)))
            known = self._read.get(path)
            if known and known[0] == version:
                return known[1]
            workflow, graph = _read_files(path, api_path)
            frozen = _read_json(interface_file(path)) if interface_file(path).exists() else None
            mode = read_mode(path.stem, workflow, graph, read_interface(frozen, graph))
            # What a request does with a mode: a node of another form shows itself now, not in a job.
            mode.bind({})
            mode.json_schema()
            mode.links()
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{error}"
            raise BrokenMode(
                f"mode {path.stem!r} cannot be read: {type(error).__name__}: {_shown_text(reason)}"
            ) from error
        self._read[path] = (version, mode)
        return mode


def _files(folder: Path) -> list[Path]:
    """What a folder holds for modes: nothing where it cannot be read."""
    try:
        return list(folder.glob("*.json"))
    except OSError:
        return []


def _shown(name: str) -> str:
    """A file's name in JSON: the bytes of one that is not UTF-8 are replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _shown_text(text: str) -> str:
    """A text that can be sent: halves of characters are replaced."""
    return text.encode("utf-8", "replace").decode()


def _stamp(path: Path) -> tuple[int, int]:
    """A value that changes when the file changes; zeros if it cannot be found."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _read_json(path: Path) -> Any:
    """The JSON in a file. Raises OSError if it is no file, and ValueError if it holds something else."""
    if not path.is_file():  # To read a pipe or a device would never end.
        raise OSError(None, "it is not a file")
    with path.open("rb") as file:
        data = file.read(LARGEST_BYTES + 1)
    if len(data) > LARGEST_BYTES:
        raise ValueError(f"it is larger than {LARGEST_BYTES:,} bytes")
    too_deep = ValueError(f"its JSON is nested deeper than {MOST_NESTED} levels")
    try:
        found = json.loads(data, parse_constant=_no_number)
    except RecursionError:
        raise too_deep from None
    if _depth(found) > MOST_NESTED:
        raise too_deep
    json.dumps(found, ensure_ascii=False).encode()  # Halves of characters cannot be sent on.
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _depth(value: Any) -> int:
    """How deep a JSON value is nested. Not recursive, because what is too deep must not fail here."""
    deepest, waiting = 0, [(value, 1)]
    while waiting and deepest <= MOST_NESTED:
        item, depth = waiting.pop()
        deepest = max(deepest, depth)
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        waiting += [(each, depth + 1) for each in inner if isinstance(each, dict | list)]
    return deepest


def _read_files(path: Path, api_path: Path) -> tuple[dict[str, Any], Graph]:
    """Both formats of a graph. The editor's is empty if `path` holds the API format, which is enough by itself.

    Raises BrokenMode if only the editor's format exists, and what reading files and JSON raises.
    """
    saved = _read_json(path)
    if _is_graph(saved):
        return {}, saved
    if not isinstance(saved, dict) or not isinstance(saved.get("nodes"), list):
        raise ValueError(f"{path.name} is not a graph, neither in the editor's format nor in API format")
    if api_path.exists():
        graph = _read_json(api_path)
        if not _is_graph(graph):
            raise ValueError(f"api/{path.name} is not a graph in API format")
        return saved, graph
    raise BrokenMode(
        f"mode {path.stem!r} has no exported graph: {path} is in the editor's format, which only the editor can "
        f"convert. Open it there and choose File > Publish as mode, or export it with File > Export (API) to "
        f"{api_path}"
    )


def _is_graph(saved: Any) -> bool:
    """Whether the content of a file is a graph in API format."""
    return isinstance(saved, dict) and bool(saved) and all(_is_node(node) for node in saved.values())


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def read_mode(name: str, workflow: dict[str, Any], graph: Graph, interface: Interface = Interface()) -> Mode:  # noqa: B008 - frozen
    """Make a mode from the two formats of a graph. Raises ValueError if the graph is invalid."""
    parameters: dict[str, Parameter] = {one.name: one for one in interface.parameters}
    for node_id, node in graph.items():
        kind = PARAMETER_CLASSES.get(node["class_type"])
        if kind is None:
            continue
        parameter = read_parameter(node_id, kind, node["inputs"])
        if parameter.name in RESERVED:
            raise ValueError(
                f"node {node_id}: {parameter.name!r} is a field of every request; choose another name for the parameter"
            )
        if parameter.name in parameters:
            other = parameters[parameter.name].targets[0][0]
            raise ValueError(f"nodes {other} and {node_id} are both parameters named {parameter.name!r}")
        parameters[parameter.name] = parameter
    own = sorted((node_id for node_id, node in graph.items() if node["class_type"] in RESULT_CLASSES), key=_order)
    results = list(interface.results) or own
    if not results:
        raise ValueError(
            f"the graph has no Result node ({RESULT_CLASSES[0]}), so it has no result: add one and save it"
        )
    title, description = _read_note(workflow)
    return Mode(name, title or name, description, parameters, tuple(results), graph, workflow, interface.results)


def _order(node_id: str) -> tuple[tuple[int, str], ...]:
    """A sort key that puts 9 before 10, and nodes of a subgraph, such as 12:3, after the subgraph's node."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in node_id.split(":"))


def _read_note(workflow: dict[str, Any]) -> tuple[str, str]:
    """The heading and first paragraph of the first note on the canvas; empty strings if there is none."""
    for node in sorted(workflow.get("nodes", []), key=lambda node: node["id"]):
        if node["type"] in NOTE_CLASSES and node.get("widgets_values"):
            blocks = [block.strip() for block in str(node["widgets_values"][0]).split("\n\n") if block.strip()]
            title = blocks.pop(0).lstrip("# ") if blocks and blocks[0].startswith("#") else ""
            return title, " ".join(blocks[0].split()) if blocks else ""
    return "", ""
