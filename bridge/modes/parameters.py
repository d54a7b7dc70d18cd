"""The parameters of a mode: its boundary nodes, the values they accept, and what is wrong with a value.

The `name` of a node is the field of a request. The node pack defines what the node does inside ComfyUI.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import JsonValue

from bridge.contract import VISIBLE_PATTERN, is_blank, shorten, shown
from bridge.modes.files_in import FILE_KINDS
from bridge.modes.images_in import is_reference


class ParameterKind(StrEnum):
    """What a parameter takes."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    SEED = "seed"
    CHOICE = "choice"
    BOOLEAN = "boolean"
    IMAGE = "image"
    FILE = "file"


PARAMETER_CLASSES = {
    "NeuroLuxTextParameter": ParameterKind.TEXT,
    "NeuroLuxIntegerParameter": ParameterKind.INTEGER,
    "NeuroLuxNumberParameter": ParameterKind.NUMBER,
    "NeuroLuxChoiceParameter": ParameterKind.CHOICE,
    "NeuroLuxFileParameter": ParameterKind.FILE,
}
RESERVED = ("mode", "job_id", "callback_url", "cancel_on_disconnect", "priority")
"""Fields of every request; parameters must not have these names."""
OPTIONS_CHARS = 400
"""The most characters of a list of options in an error."""
INPUT_KEYS = {ParameterKind.FILE: "file"}
"""The node input that holds the value, if it is not called value."""
VALUE_INDEX = 1
"""The value of a boundary node among its widgets, after the name."""
UPLOADS = (ParameterKind.IMAGE, ParameterKind.FILE)
"""Kinds whose value is uploaded and stored; the job holds a reference to it."""


@dataclass(frozen=True)
class Parameter:
    """A value that a request can set. Bounds are inclusive."""

    name: str
    kind: ParameterKind
    default: JsonValue
    targets: tuple[tuple[str, str], ...]
    """The inputs of nodes that a value goes to."""
    places: tuple[tuple[str, str, int], ...] = ()
    """The same in the editor's format: node, name of the widget, position among its widgets."""
    node_id: str = ""
    """The boundary node; empty for a widget that its author chose as an input of the app."""
    description: str = ""
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    max_length: int | None = None
    accept: tuple[str, ...] = ()
    """Accepted kinds of file, by extension; empty: all kinds that `bridge.modes.files_in` knows."""
    offered: tuple[str, ...] | None = None
    """The options of the widget that the node is linked to; None if they are not known, or the node has own choices."""

    @property
    def options(self) -> tuple[str, ...]:
        """The options of a choice; empty: any value."""
        return self.choices or self.offered or ()

    def problem(self, value: JsonValue) -> str | None:
        """What is wrong with `value`, in a sentence that says what would be right; None if it is valid."""
        match self.kind:
            case ParameterKind.TEXT:
                return self._text_problem(value)
            case ParameterKind.IMAGE:
                # The gateway has replaced the upload by a reference. Any other text would be a file name.
                return None if is_reference(value) else f"{self.name} must be an image, not {shown(value)}"
            case ParameterKind.FILE:
                return None if is_reference(value) else f"{self.name} must be a file, not {shown(value)}"
            case ParameterKind.BOOLEAN:
                return None if isinstance(value, bool) else f"{self.name} must be true or false, not {shown(value)}"
            case ParameterKind.CHOICE:
                return self._choice_problem(value)
            case _:
                return self._number_problem(value)

    def _choice_problem(self, value: JsonValue) -> str | None:
        if not isinstance(value, str):
            return f"{self.name} must be a string, not {shown(value)}"
        if self.options and value not in self.options:
            return f"{self.name} {shown(value)} is not one of {shorten(', '.join(self.options), OPTIONS_CHARS)}"
        if self.offered is not None and not self.options:
            return f"{self.name} {shown(value)}: ComfyUI offers no options; put a file into the folder that it reads"
        return None

    def _text_problem(self, value: JsonValue) -> str | None:
        if not isinstance(value, str):
            return f"{self.name} must be a string, not {shown(value)}"
        if self.required and is_blank(value):
            return f"{self.name} {shown(value)}: it shows nothing: all of it is white space or invisible"
        if self.max_length and len(value) > self.max_length:
            return f"{self.name} has {len(value)} characters; at most {self.max_length} are allowed"
        return None

    def _number_problem(self, value: JsonValue) -> str | None:
        whole = self.kind is not ParameterKind.NUMBER
        # bool is an int to Python; a caller who sends true for a number has made a mistake.
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            return f"{self.name} must be {'an integer' if whole else 'a number'}, not {shown(value)}"
        assert isinstance(value, int | float)
        if self.minimum is not None and value < self.minimum:
            return f"{self.name} {shown(value)} is below the minimum of {_short(self.minimum)}"
        if self.maximum is not None and value > self.maximum:
            return f"{self.name} {shown(value)} is above the maximum of {_short(self.maximum)}"
        return None

    def json_schema(self) -> dict[str, JsonValue]:
        """The parameter as a JSON Schema property."""
        schema: dict[str, JsonValue] = {"description": self.description, "default": self.default}
        match self.kind:
            case ParameterKind.INTEGER | ParameterKind.SEED:
                schema["type"] = "integer"
            case ParameterKind.NUMBER:
                schema["type"] = "number"
            case ParameterKind.BOOLEAN:
                schema["type"] = "boolean"
            case _:
                schema["type"] = "string"
        if self.kind in UPLOADS:
            schema["format"] = self.kind.value
        if self.options:
            schema["enum"] = list(self.options)
        if self.max_length:
            schema["maxLength"] = self.max_length
        if self.kind is ParameterKind.TEXT and self.required:
            schema["pattern"] = VISIBLE_PATTERN
        if self.minimum is not None:
            schema["minimum"] = self.minimum
        if self.maximum is not None:
            schema["maximum"] = self.maximum
        return schema


def read_parameter(node_id: str, kind: ParameterKind, inputs: Mapping[str, Any]) -> Parameter:
    """The parameter of a boundary node. Raises ValueError and KeyError if the node is invalid."""
    name = inputs["name"]
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"node {node_id}: parameter name {name!r} is not an identifier such as 'strength'")
    key = INPUT_KEYS.get(kind, "value")
    value = inputs[key]
    if isinstance(value, list):
        raise ValueError(f"parameter {name!r}: its value is linked to another node, so a request cannot set it")
    bounded = kind in (ParameterKind.INTEGER, ParameterKind.NUMBER)
    return Parameter(
        name=name,
        kind=kind,
        default=value,
        targets=((node_id, key),),
        places=((node_id, key, VALUE_INDEX),),
        node_id=node_id,
        description=inputs.get("description", ""),
        required=bool(inputs.get("required", False)),
        minimum=inputs["minimum"] if bounded else None,
        maximum=inputs["maximum"] if bounded else None,
        step=inputs.get("step") if bounded else None,
        choices=tuple(line.strip() for line in inputs.get("choices", "").splitlines() if line.strip()),
        max_length=inputs.get("max_length") or None,
        accept=known_kinds(name, inputs.get("accept", "").split(",")),
    )


def known_kinds(name: str, given: Iterable[str]) -> tuple[str, ...]:
    """The kinds of file that parameter `name` accepts, by extension. Raises ValueError for one that is not known."""
    kinds = tuple(part.strip().lower().lstrip(".") for part in given if part.strip())
    if unknown := [kind for kind in kinds if kind not in FILE_KINDS]:
        raise ValueError(f"parameter {name!r}: accept lists {unknown[0]!r}; known kinds are {', '.join(FILE_KINDS)}")
    return kinds


def _short(number: float) -> str:
    return f"{number:g}" if abs(number) < 1e6 else str(int(number))
