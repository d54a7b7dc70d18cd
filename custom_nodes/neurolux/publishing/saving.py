"""Saves a graph from the editor as a mode: files in the user's modes folder, which the bridge watches.

They are the graph in the editor's format and in API format, and, for an app or a graph without a Result node, what a
request can set and what it gets back. The bridge has no ComfyUI to ask, and names must not change when a node does; so
both are frozen here. It checks what only the person at the editor can fix; the bridge checks the rest when it reads the
files. It writes to no other folder.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .app_mode import read_app_mode
from .app_parameters import read_parameters, result_names
from .definitions import Definition
from .named_nodes import read_named_nodes

MODES_VARIABLE = "NEUROLUX_MODES_DIR"
"""The service sets it for a ComfyUI that it starts."""
STATE_VARIABLE = "IMAGEGEN_STATE_DIR"
APP_NAME = "neurolux-imagegen"
MODE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""Valid as a file name on every system, and in a URL without quoting."""
RESULT_CLASSES = ("NeuroLuxResult", "NeuroLuxVideoResult", "NeuroLuxFileResult")
PARAMETER_CLASS = re.compile(r"NeuroLux(Text|Integer|Number|Choice|File)Parameter")
VALUE_INPUTS = ("value", "file")
RESERVED = ("mode", "job_id", "callback_url", "cancel_on_disconnect", "priority")
SHIPPED_MODES = Path(__file__).parents[1] / "example_workflows"


INTERFACE_VERSION = 1


class CannotPublish(ValueError):
    """The graph cannot become a mode of that name. `code` is for programs, the message for people."""

    def __init__(self, code: str, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class NodeClasses(Protocol):
    """What this ComfyUI knows of its node classes."""

    def definition(self, class_type: str) -> Definition | None:
        """What ``INPUT_TYPES`` of the class returns; None for an unknown class."""
        ...

    def title(self, class_type: str) -> str:
        """The title of nodes of the class to which nobody gave one."""
        ...

    def is_output(self, class_type: str) -> bool:
        """Whether nodes of the class end a graph."""
        ...

    def knows(self, class_type: str) -> bool:
        """Whether this ComfyUI has the class."""
        ...


@dataclass(frozen=True)
class Interface:
    """What a mode takes and gives, as JSON. What parameter nodes and Result nodes say themselves is not among it."""

    parameters: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    """For people: each parameter with its type, also those of parameter nodes."""

    @property
    def frozen(self) -> dict[str, Any] | None:
        """The content of the file that holds it; None if the graph says all by itself."""
        if not (self.parameters or self.results):
            return None
        return {"version": INTERFACE_VERSION, "parameters": self.parameters, "results": self.results}


@dataclass(frozen=True)
class Published:
    """A saved mode: its file, its path on the service, and what it takes."""

    name: str
    path: Path
    endpoint: str
    interface: Interface
    changes: list[str]
    """Names that requests to the mode of before could use, and that are gone."""
    replaces: str
    """What would be replaced, in words; empty: nothing."""
    missing: list[str]
    """The node classes that this ComfyUI lacks, each with its nodes and what to do."""


def modes_folder(env: Mapping[str, str] = os.environ) -> Path:
    """The user's modes folder, which `imagegen paths` shows too.

    If no service has set it, this is the default: `workflows` in the service's state folder.
    """
    if env.get(MODES_VARIABLE):
        return Path(env[MODES_VARIABLE])
    if env.get(STATE_VARIABLE):
        return Path(env[STATE_VARIABLE]).expanduser() / "workflows"
    home = Path.home()
    if sys.platform == "win32":
        base = Path(env.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(env.get("XDG_STATE_HOME") or home / ".local" / "state")
    return base / APP_NAME / "workflows"


def publish(
    name: str,
    workflow: Any,
    graph: Any,
    classes: NodeClasses,
    *,
    widgets: Mapping[str, Sequence[str]] | None = None,
    overwrite: bool,
    dry_run: bool = False,
    folder: Path | None = None,
) -> Published:
    """Save a graph under ``name``. Raises CannotPublish, and OSError where the folder is read-only.

    :param widgets: By node id in API format: the names of its widgets, as the editor orders them.
    :param dry_run: Say what would be saved, and save nothing.
    """
    if not MODE_NAME.fullmatch(name):
        raise CannotPublish(
            "bad_name", f"{name!r} cannot be a mode's name: use lowercase letters, digits, - and _, such as my-mode"
        )
    interface = interface_of(workflow, graph, classes, widgets or {})
    folder = folder or modes_folder()
    path = folder / f"{name}.json"
    changes = _changes(path, graph, interface)
    replaces = _replaces(path, changes)
    missing = missing_classes(graph, classes)
    published = Published(name, path, f"/v1/modes/{name}", interface, changes, replaces, missing)
    if dry_run:
        return published
    if replaces and not overwrite:
        raise CannotPublish("exists", replaces, status=409)
    (folder / "api").mkdir(parents=True, exist_ok=True)
    # The UI graph goes last: it is what makes the mode appear.
    _write(folder / "api" / path.name, graph)
    if interface.frozen:
        _write(interface_file(path), interface.frozen)
    else:
        interface_file(path).unlink(missing_ok=True)
    _write(path, workflow)
    return published


def interface_file(path: Path) -> Path:
    """Where the frozen parameters and results of a mode are, by the file of its workflow."""
    return path.parent / "api" / f"{path.stem}.interface.json"


def interface_of(workflow: Any, graph: Any, classes: NodeClasses, widgets: Mapping[str, Sequence[str]]) -> Interface:
    """What a graph would take and give as a mode. Raises CannotPublish for one that could not be an endpoint."""
    if not isinstance(workflow, dict) or not isinstance(workflow.get("nodes"), list):
        raise CannotPublish("bad_graph", "the editor sent no graph")
    if not isinstance(graph, dict) or not graph or not all(_is_node(node) for node in graph.values()):
        raise CannotPublish("bad_graph", "the graph is empty or entirely muted; there is nothing to run")
    names = _parameter_nodes(graph)
    shown = [f"{name}: {kind}" for name, (_, kind) in names.items()]
    app = read_app_mode(workflow, graph) or read_named_nodes(workflow, graph, classes.definition, classes.title)
    parameters, warnings = [], list(app.warnings) if app else []
    if app is not None:
        found, more = read_parameters(app, workflow, graph, definitions=classes.definition, widgets=widgets)
        warnings += more
        parameter_nodes = {node_id for node_id, _ in names.values()}
        for one in found:
            if any(node_id in parameter_nodes for node_id, _ in one.targets):
                continue  # The value of a parameter node, which has a name of its own.
            _check_name(one.name, f"node {one.targets[0][0]}")
            if one.name in names:
                raise CannotPublish(
                    "bad_parameter",
                    f"nodes {names[one.name][0]} and {one.targets[0][0]} both give a parameter {one.name!r}: rename "
                    "one of the widgets, or the title of its node",
                )
            names[one.name] = (one.targets[0][0], one.kind)
            parameters.append(one.record())
            shown.append(f"{one.name}: {one.kind}" + (", required" if one.required else ""))
    return Interface(parameters, _results(graph, app.outputs if app else (), classes), warnings, shown)


def missing_classes(graph: Mapping[str, Any], classes: NodeClasses) -> list[str]:
    """The node classes that this ComfyUI lacks, in words. Only a ComfyUI that has them can run the mode."""
    found: dict[str, list[str]] = {}
    for node_id, node in graph.items():
        if not classes.knows(node["class_type"]):
            found.setdefault(node["class_type"], []).append(node_id)
    return [
        f"this ComfyUI has no node class {name!r} ({'node' if len(nodes) == 1 else 'nodes'} {', '.join(nodes)}), so "
        "requests would fail here; install its node pack and restart ComfyUI, or replace the node"
        for name, nodes in found.items()
    ]


def _results(graph: Mapping[str, Any], chosen: Sequence[str], classes: NodeClasses) -> list[dict[str, str]]:
    """The result nodes to freeze: empty where the bridge finds Result nodes by itself. Raises CannotPublish."""
    own = [node_id for node_id, node in graph.items() if node["class_type"] in RESULT_CLASSES]
    if own and (not chosen or set(chosen) == set(own)):
        return []
    ends = list(chosen) or [node_id for node_id, node in graph.items() if classes.is_output(node["class_type"])]
    if not ends:
        raise CannotPublish(
            "no_result",
            "the graph has no Result node and no other node that saves or shows its output, so a request would return "
            "nothing. Add one (NeuroLux > Result, or Save Image), link your images to it, and publish again",
        )
    names = result_names({node_id: graph[node_id] for node_id in ends})
    return [{"node": node_id, "name": name} for node_id, name in names.items()]


def _replaces(path: Path, changes: Sequence[str]) -> str:
    if path.exists():
        gone = f"; requests that use {', '.join(changes)} would be refused" if changes else ""
        return f"mode {path.stem!r} already exists; publishing replaces it{gone}"
    return (
        f"mode {path.stem!r} comes with NeuroLux; yours would replace it"
        if (SHIPPED_MODES / path.name).exists()
        else ""
    )


def _changes(path: Path, graph: Mapping[str, Any], interface: Interface) -> list[str]:
    """The names of the mode that is there now which the new one has not."""
    try:
        before = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
        old = set(_parameter_nodes(before))
        if interface_file(path).exists():
            old |= {one["name"] for one in json.loads(interface_file(path).read_text(encoding="utf-8"))["parameters"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []  # None is there, or none that could be used.
    return sorted(old - set(_parameter_nodes(graph)) - {one["name"] for one in interface.parameters})


def _parameter_nodes(graph: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The parameter nodes of a graph by name: their ids and types. Raises CannotPublish."""
    found: dict[str, tuple[str, str]] = {}
    for node_id, node in graph.items():
        if match := PARAMETER_CLASS.fullmatch(node["class_type"]):
            name = _check_parameter(node_id, node["inputs"])
            if name in found:
                raise CannotPublish(
                    "bad_parameter",
                    f"nodes {found[name][0]} and {node_id} are both parameters named {name!r}; rename one",
                )
            found[name] = (node_id, match[1].lower())
    return found


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def _check_parameter(node_id: str, inputs: Mapping[str, Any]) -> str:
    name = _check_name(inputs.get("name"), f"node {node_id}")
    if any(isinstance(inputs.get(key), list) for key in VALUE_INPUTS):
        raise CannotPublish(
            "bad_parameter", f"parameter {name!r}: its value comes from another node, so no request can set it"
        )
    return name


def _check_name(name: Any, shown: str) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise CannotPublish(
            "bad_parameter", f"{shown}: {name!r} cannot be a parameter's name; use one such as 'strength'"
        )
    if name in RESERVED:
        raise CannotPublish("bad_parameter", f"{shown}: {name!r} is a field of every request; choose another name")
    return name


def _write(path: Path, content: Any) -> None:
    """Replace a file in one step: a concurrent reader sees either the old one or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
