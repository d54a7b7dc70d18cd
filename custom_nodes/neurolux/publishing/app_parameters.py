"""The parameters of an app: the name, type, limits and default of each value that a request can set.

Names are frozen when a workflow is published. The first of these holds: the label that the author gave to the widget,
``name`` in the entry's configuration, the widget's own name. Two alike get the titles of their nodes. Everything else
follows from the node's definition, as ``/object_info`` gives it. An entry's configuration may narrow it: ``minimum``,
``maximum``, ``step``, ``max_length``, ``choices``, ``required``; and ``accept`` makes a file of a widget that takes the
name of one in the input folder. The editor keeps keys that it does not know.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .app_mode import AppInput, AppMode
from .definitions import Definition, choices_of, options_of, spec_of
from .editor_graph import EditorGraph, Widget

LARGEST_INTEGER = 2**53 - 1
"""JSON numbers beyond it lose digits in JavaScript, and so in the editor."""
CONTROL = "control_after_generate"
"""The widget behind a seed that says what becomes of it after each run."""
LEFT_OUT_IF_EMPTY = ("description", "places", "required", "choices", "accept")
UNKNOWN_UPLOADS = ("video_upload", "audio_upload", "file_upload")


@dataclass(frozen=True)
class AppParameter:
    """A value that a request can set. Bounds are inclusive; ``targets`` are inputs of nodes in API format.

    ``places`` are the same in the editor's format: node, name of the widget, position in ``widgets_values``.
    """

    name: str
    kind: str
    default: Any
    targets: tuple[tuple[str, str], ...]
    places: tuple[tuple[str, str, int], ...] = ()
    description: str = ""
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    max_length: int | None = None
    choices: tuple[str, ...] = ()
    accept: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """As JSON, without what is not known."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        return {key: value for key, value in known.items() if key not in LEFT_OUT_IF_EMPTY or value}


def read_parameters(
    app: AppMode,
    workflow: dict[str, Any],
    graph: Mapping[str, Any],
    *,
    definitions: Callable[[str], Definition | None],
    widgets: Mapping[str, Sequence[str]],
) -> tuple[list[AppParameter], list[str]]:
    """The parameters of an app, and warnings about inputs that no request can set.

    :param definitions: Gives the definition of a node class, if this ComfyUI has it.
    :param widgets: By node id in API format: the names of its widgets as the editor orders them.
    """
    editor = EditorGraph(workflow)
    usable: list[tuple[AppInput, dict[str, Any]]] = []
    warnings: list[str] = []
    for one in app.inputs:
        node = graph[one.widgets[0].node_id]
        value = node["inputs"][one.widgets[0].name]
        control = _control(editor, one.widgets[0], widgets)
        spec = spec_of(definitions(node["class_type"]), one.widgets[0].name, node["inputs"])
        try:
            usable.append((one, _narrowed(one, _typed(one, value, spec, control), spec)))
        except ValueError as error:
            warnings.append(str(error))
    found = [
        AppParameter(name, targets=tuple((each.node_id, each.name) for each in one.widgets), places=places, **kind)
        for name, (one, kind) in zip(_names([one for one, _ in usable]), usable, strict=True)
        for places in [tuple(_places(one, widgets))]
    ]
    return found, warnings


def result_names(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The names of results in answers by the ids of their nodes. Two alike get the ids."""
    names = {node_id: _result_name(node, node_id) for node_id, node in nodes.items()}
    often = Counter(names.values())
    return {node_id: _told_apart(name, node_id) if often[name] > 1 else name for node_id, name in names.items()}


def _told_apart(name: str, node_id: str) -> str:
    return f"{name}_{re.sub(r'[^0-9]+', '_', node_id)}"


def _result_name(node: Mapping[str, Any], node_id: str) -> str:
    """What a Result node says, else its title, else its id."""
    named = node["inputs"].get("name")
    if isinstance(named, str) and named:
        return named
    return slug(str(node.get("_meta", {}).get("title") or "")) or node_id


def slug(text: str) -> str:
    """A name made from text: ``Image (start)`` becomes ``image_start``. Letters of any script stay."""
    return re.sub(r"\W+", "_", text.lower()).strip("_")


def _typed(one: AppInput, value: Any, spec: Sequence[Any] | None, control: str | None) -> dict[str, Any]:
    """Type, limits and default. Raises ValueError for a value that JSON or a request cannot carry."""
    shown = f"the app's input {one.name!r} of node {one.place} ({one.title})"
    options = options_of(spec)
    common = {
        "default": value,
        "description": str(one.config.get("description") or options.get("tooltip") or ""),
        "required": bool(one.config.get("required")),
    }
    match spec[0] if spec else _type_of(value):
        case "STRING":
            return {"kind": "text", **common}
        case "BOOLEAN":
            return {"kind": "boolean", **common}
        case "INT" if control is not None and control != "fixed":
            return {"kind": "seed", **common}
        case "INT" | "FLOAT" as kind:
            limits = {"minimum": _within(options.get("min")), "maximum": _within(options.get("max"))}
            step = options.get("step") if isinstance(options.get("step"), int | float) else None
            return {"kind": "integer" if kind == "INT" else "number", **common, **limits, "step": step}
        case "COMBO" | list():
            if options.get("image_upload"):
                required = common["required"] or "" not in choices_of(spec)
                return {"kind": "image", **common, "default": "", "required": required}
            if any(options.get(upload) for upload in UNKNOWN_UPLOADS):
                raise ValueError(f"{shown} is a video, sound or other file, which requests cannot bring")
            if isinstance(value, str):
                return {"kind": "choice", **common}
            return _typed(one, value, None, control)
        case kind:
            raise ValueError(f"{shown} is of the type {kind}, which requests cannot set")


def _narrowed(one: AppInput, typed: dict[str, Any], spec: Sequence[Any] | None) -> dict[str, Any]:
    """``typed`` within what the author's configuration says. Raises ValueError for what does not fit the widget."""
    config, kind = one.config, typed["kind"]
    shown = f"the app's input {one.name!r} of node {one.place} ({one.title})"
    found = dict(typed)
    for key, tighter in (("minimum", max), ("maximum", min), ("step", max)):
        if key in config:
            if kind not in ("integer", "number") or not _is_number(config[key]):
                raise ValueError(f"{shown}: {key} {config[key]!r} does not fit a {kind}")
            found[key] = config[key] if found.get(key) is None else tighter(found[key], config[key])
    if "max_length" in config:
        if kind != "text" or not isinstance(config["max_length"], int):
            raise ValueError(f"{shown}: max_length {config['max_length']!r} does not fit a {kind}")
        found["max_length"] = config["max_length"]
    for key, fits in (("choices", ("choice",)), ("accept", ("text", "choice"))):
        if key in config:
            if kind not in fits or not _is_texts(config[key]):
                raise ValueError(f"{shown}: {key} {config[key]!r} does not fit a {kind}")
            found[key] = tuple(config[key])
    if unknown := [each for each in found.get("choices", ()) if each not in choices_of(spec)]:
        raise ValueError(f"{shown}: its choice {unknown[0]!r} is none of the widget's")
    return {**found, "kind": "file", "default": ""} if "accept" in found else found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _type_of(value: Any) -> str:
    """The type of a widget whose definition is not known."""
    match value:
        case bool():
            return "BOOLEAN"
        case int():
            return "INT"
        case float():
            return "FLOAT"
        case str():
            return "STRING"
        case _:
            return type(value).__name__


def _within(limit: Any) -> float | None:
    if isinstance(limit, bool) or not isinstance(limit, int | float):
        return None
    return max(-LARGEST_INTEGER, min(limit, LARGEST_INTEGER))


def _control(editor: EditorGraph, widget: Widget, widgets: Mapping[str, Sequence[str]]) -> str | None:
    """What the editor does with a seed after each run; None for a widget that it leaves alone."""
    names = list(widgets.get(widget.node_id, ()))
    place = editor.at(*widget.node_id.split(":"))
    if place is None or widget.name not in names:
        return None
    position = names.index(widget.name) + 1
    values = place.node.get("widgets_values")
    if position < len(names) and names[position] == CONTROL and isinstance(values, list) and position < len(values):
        return str(values[position])
    return None


def _places(one: AppInput, widgets: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, int]]:
    shown = Widget(one.place, one.name)
    for widget in dict.fromkeys((*one.widgets, shown)):
        names = list(widgets.get(widget.node_id, ()))
        if widget.name in names:
            yield widget.node_id, widget.name, names.index(widget.name)


def _names(inputs: Sequence[AppInput]) -> list[str]:
    """A public name for each input; all are different."""
    own = [slug(one.label) or str(one.config.get("name") or "") or slug(one.name) for one in inputs]
    per_place = Counter(one.place for one in inputs)
    names = list(own)
    for n, one in enumerate(inputs):
        if own.count(own[n]) > 1 and slug(one.title):
            names[n] = slug(one.title) if per_place[one.place] == 1 else f"{slug(one.title)}_{own[n]}"
    return [
        _told_apart(name, one.place) if names.count(name) > 1 else name for name, one in zip(names, inputs, strict=True)
    ]
