"""The workflow library: saved graphs, their parameters, and the values that a request puts into them.

A mode is a pair of files: `<name>.json` as the editor saves it and `api/<name>.json`, the same graph as ComfyUI's
front end exports it for `/prompt`. Its parameters are the boundary nodes of the graph (`NeuroLux…Parameter`), its
results are the result nodes; its title and description are the first heading and paragraph of the first note on the
canvas. There is no side file and no code per mode.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from bridge.contract import MAX_SEED
from bridge.errors import BridgeError, UnknownMode
from bridge.images_in import is_reference

SHIPPED_WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
RESULT_CLASS = "NeuroLuxResult"
NOTE_CLASSES = ("MarkdownNote", "Note")
UI_VALUE_INDEX = 1
"""Every parameter node has its name as first widget and its value as second."""

Graph = dict[str, dict[str, Any]]


class BrokenMode(BridgeError):
    """A file of the mode cannot be read, or its graph makes no sense."""

    status, code = 503, "broken_mode"


class ParameterKind(StrEnum):
    """The type of a boundary node."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    SEED = "seed"
    CHOICE = "choice"
    IMAGE = "image"


PARAMETER_CLASSES = {
    "NeuroLuxTextParameter": ParameterKind.TEXT,
    "NeuroLuxIntegerParameter": ParameterKind.INTEGER,
    "NeuroLuxNumberParameter": ParameterKind.NUMBER,
    "NeuroLuxSeedParameter": ParameterKind.SEED,
    "NeuroLuxChoiceParameter": ParameterKind.CHOICE,
    "NeuroLuxImageParameter": ParameterKind.IMAGE,
}


@dataclass(frozen=True)
class Parameter:
    """One value that a request may set. Bounds are inclusive."""

    node_id: str
    name: str
    kind: ParameterKind
    default: JsonValue
    description: str = ""
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    max_length: int | None = None

    @property
    def input_key(self) -> str:
        """The node's input that holds the value."""
        return "image" if self.kind is ParameterKind.IMAGE else "value"

    def problem(self, value: JsonValue) -> str | None:
        """What is wrong with `value`, in a sentence that says what would be right; None if it fits."""
        match self.kind:
            case ParameterKind.TEXT:
                return self._text_problem(value)
            case ParameterKind.IMAGE:
                # By now the door has put a reference into the store in its place; a name would be one of a file.
                return None if is_reference(value) else f"{self.name} must be a picture, not {value!r}"
            case ParameterKind.CHOICE:
                if not isinstance(value, str):
                    return f"{self.name} must be a string, not {value!r}"
                if self.choices and value not in self.choices:
                    return f"{self.name} {value!r} is not one of {', '.join(self.choices)}"
                return None
            case _:
                return self._number_problem(value)

    def _text_problem(self, value: JsonValue) -> str | None:
        if not isinstance(value, str):
            return f"{self.name} must be a string, not {value!r}"
        if self.max_length and len(value) > self.max_length:
            return f"{self.name} has {len(value)} characters; at most {self.max_length} are allowed"
        return None

    def _number_problem(self, value: JsonValue) -> str | None:
        whole = self.kind is not ParameterKind.NUMBER
        # bool is an int to Python; a caller who sends true for a number has made a mistake.
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            return f"{self.name} must be {'an integer' if whole else 'a number'}, not {value!r}"
        assert isinstance(value, int | float)
        if self.minimum is not None and value < self.minimum:
            return f"{self.name} {value} is below the minimum of {_short(self.minimum)}"
        if self.maximum is not None and value > self.maximum:
            return f"{self.name} {value} is above the maximum of {_short(self.maximum)}"
        return None

    def json_schema(self) -> dict[str, JsonValue]:
        """The parameter as a JSON Schema property."""
        schema: dict[str, JsonValue] = {"description": self.description, "default": self.default}
        match self.kind:
            case ParameterKind.INTEGER | ParameterKind.SEED:
                schema["type"] = "integer"
            case ParameterKind.NUMBER:
                schema["type"] = "number"
            case _:
                schema["type"] = "string"
        if self.kind is ParameterKind.IMAGE:
            schema["format"] = "image"
        if self.choices:
            schema["enum"] = list(self.choices)
        if self.max_length:
            schema["maxLength"] = self.max_length
        if self.minimum is not None:
            schema["minimum"] = self.minimum
        if self.maximum is not None:
            schema["maximum"] = self.maximum
        return schema


@dataclass(frozen=True)
class Mode:
    """One saved graph. `graph` is what `/prompt` takes, `workflow` what the editor opens."""

    name: str
    title: str
    description: str
    parameters: Mapping[str, Parameter]
    results: tuple[str, ...]
    graph: Graph
    workflow: dict[str, Any]

    def json_schema(self) -> dict[str, JsonValue]:
        """What a request may set, as JSON Schema."""
        return {
            "title": self.title,
            "description": self.description,
            "type": "object",
            "properties": {name: parameter.json_schema() for name, parameter in self.parameters.items()},
            "required": [name for name, parameter in self.parameters.items() if parameter.required],
            "additionalProperties": False,
        }

    def bind(self, values: Mapping[str, JsonValue]) -> tuple[Graph, dict[str, Any]]:
        """Both formats of the graph with `values` put in; parameters not named keep what the graph was saved with.

        The editor's format is changed too, so that a picture dropped on the editor reopens what made it.
        """
        graph, workflow = copy.deepcopy(self.graph), copy.deepcopy(self.workflow)
        ui_nodes = {str(node["id"]): node for node in workflow.get("nodes", [])}
        for name, value in values.items():
            parameter = self.parameters.get(name)
            if parameter is None:
                raise BrokenMode(
                    f"mode {self.name!r} has no parameter {name!r} any more: its file was changed after the job was "
                    "accepted; send the request again"
                )
            graph[parameter.node_id]["inputs"][parameter.input_key] = value
            widgets = ui_nodes.get(parameter.node_id, {}).get("widgets_values")
            if isinstance(widgets, list) and len(widgets) > UI_VALUE_INDEX:
                widgets[UI_VALUE_INDEX] = value
        return graph, workflow


class ModeLibrary:
    """The modes of some folders, read again when a file changes. A later folder's mode hides an earlier one's."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(folders)
        self._read: dict[Path, tuple[tuple[int, ...], Mode]] = {}

    def names(self) -> list[str]:
        """The names of all modes, broken ones included."""
        return sorted({path.stem for folder in self._folders for path in folder.glob("*.json")})

    def get(self, name: str) -> Mode:
        """The mode of that name. Raises UnknownMode or BrokenMode."""
        if Path(name).name == name:  # No way out of the folders.
            for folder in reversed(self._folders):
                if (path := folder / f"{name}.json").is_file():
                    return self._load(path)
        names = self.names()
        raise UnknownMode(f"no mode is called {name!r}; there is {', '.join(names) or 'none'}", field="mode")

    def _load(self, path: Path) -> Mode:
        api_path = path.parent / "api" / path.name
        try:
            version = tuple(n for p in (path, api_path) for n in (p.stat().st_mtime_ns, p.stat().st_size))
            known = self._read.get(path)
            if known and known[0] == version:
                return known[1]
            mode = read_mode(path.stem, json.loads(path.read_bytes()), json.loads(api_path.read_bytes()))
        except FileNotFoundError as error:
            raise BrokenMode(
                f"mode {path.stem!r} has no exported graph: {error.filename} is missing; export it from the editor"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BrokenMode(f"mode {path.stem!r} cannot be read: {type(error).__name__}: {error}") from error
        self._read[path] = (version, mode)
        return mode


def read_mode(name: str, workflow: dict[str, Any], graph: Graph) -> Mode:
    """Make a mode out of the two formats of one graph. Raises ValueError where the graph makes no sense."""
    parameters: dict[str, Parameter] = {}
    for node_id, node in graph.items():
        kind = PARAMETER_CLASSES.get(node["class_type"])
        if kind is None:
            continue
        parameter = _read_parameter(node_id, kind, node["inputs"])
        if parameter.name in parameters:
            other = parameters[parameter.name].node_id
            raise ValueError(f"nodes {other} and {node_id} are both parameters named {parameter.name!r}")
        parameters[parameter.name] = parameter
    results = tuple(node_id for node_id, node in graph.items() if node["class_type"] == RESULT_CLASS)
    if not results:
        raise ValueError(f"the graph has no {RESULT_CLASS} node, so it has no result")
    title, description = _read_note(workflow)
    return Mode(name, title or name, description, parameters, results, graph, workflow)


def _read_parameter(node_id: str, kind: ParameterKind, inputs: Mapping[str, Any]) -> Parameter:
    name = inputs["name"]
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"node {node_id}: parameter name {name!r} is not an identifier such as 'strength'")
    value = inputs["image" if kind is ParameterKind.IMAGE else "value"]
    if isinstance(value, list):
        raise ValueError(f"parameter {name!r}: its value is linked to another node, so a request cannot set it")
    bounded = kind in (ParameterKind.INTEGER, ParameterKind.NUMBER)
    seed = kind is ParameterKind.SEED
    return Parameter(
        node_id=node_id,
        name=name,
        kind=kind,
        default=value,
        description=inputs.get("description", ""),
        required=bool(inputs.get("required", False)),
        minimum=inputs["minimum"] if bounded else 0 if seed else None,
        maximum=inputs["maximum"] if bounded else MAX_SEED if seed else None,
        step=inputs.get("step") if bounded else None,
        choices=tuple(line.strip() for line in inputs.get("choices", "").splitlines() if line.strip()),
        max_length=inputs.get("max_length") or None,
    )


def _read_note(workflow: dict[str, Any]) -> tuple[str, str]:
    """Heading and first paragraph of the first note on the canvas; empty strings where there is none."""
    for node in sorted(workflow.get("nodes", []), key=lambda node: node["id"]):
        if node["type"] in NOTE_CLASSES and node.get("widgets_values"):
            blocks = [block.strip() for block in str(node["widgets_values"][0]).split("\n\n") if block.strip()]
            title = blocks.pop(0).lstrip("# ") if blocks and blocks[0].startswith("#") else ""
            return title, " ".join(blocks[0].split()) if blocks else ""
    return "", ""


def _short(number: float) -> str:
    return f"{number:g}" if abs(number) < 1e6 else str(int(number))
