"""Saves a graph from the editor as a mode: two files in the user's modes folder, which the bridge watches.

It checks what only the person at the editor can fix; the bridge checks the rest when it reads the files. It writes to
no other folder.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .service import service_url

MODES_VARIABLE = "NEUROLUX_MODES_DIR"
"""The service sets it for a ComfyUI that it starts."""
STATE_VARIABLE = "IMAGEGEN_STATE_DIR"
APP_NAME = "neurolux-imagegen"
MODE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""Valid as a file name on every system, and in a URL without quoting."""
RESULT_CLASSES = ("NeuroLuxResult", "NeuroLuxVideoResult", "NeuroLuxFileResult")
PARAMETER_CLASS = re.compile(r"NeuroLux(Text|Integer|Number|Seed|Choice|Boolean|Image|File)Parameter")
VALUE_INPUTS = ("value", "image", "file")
RESERVED = ("mode", "job_id", "callback_url", "cancel_on_disconnect", "priority")
SHIPPED_MODES = Path(__file__).parents[1] / "example_workflows"


class CannotPublish(ValueError):
    """The graph cannot become a mode of that name. `code` is for programs, the message for people."""

    def __init__(self, code: str, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


@dataclass(frozen=True)
class Published:
    """A saved mode: its file, and its endpoint on the service."""

    name: str
    path: Path
    endpoint: str


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


def publish(name: str, workflow: Any, graph: Any, *, overwrite: bool, folder: Path | None = None) -> Published:
    """Save both formats of a graph under ``name``. Raises CannotPublish, and OSError where the folder is read-only."""
    if not MODE_NAME.fullmatch(name):
        raise CannotPublish(
            "bad_name", f"{name!r} cannot be a mode's name: use lowercase letters, digits, - and _, such as my-mode"
        )
    check_graph(workflow, graph)
    folder = folder or modes_folder()
    path = folder / f"{name}.json"
    if not overwrite:
        if path.exists():
            raise CannotPublish("exists", f"mode {name!r} already exists; publishing replaces it", status=409)
        if (SHIPPED_MODES / path.name).exists():
            raise CannotPublish("exists", f"mode {name!r} comes with NeuroLux; yours would replace it", status=409)
    (folder / "api").mkdir(parents=True, exist_ok=True)
    # The API graph goes first: the UI graph is what makes the mode appear.
    _write(folder / "api" / path.name, graph)
    _write(path, workflow)
    return Published(name, path, f"{service_url()}/v1/modes/{name}")


def check_graph(workflow: Any, graph: Any) -> None:
    """Raise CannotPublish for a graph that could not be an endpoint."""
    if not isinstance(workflow, dict) or not isinstance(workflow.get("nodes"), list):
        raise CannotPublish("bad_graph", "the editor sent no graph")
    if not isinstance(graph, dict) or not graph or not all(_is_node(node) for node in graph.values()):
        raise CannotPublish("bad_graph", "the graph is empty or entirely muted; there is nothing to run")
    if not any(node["class_type"] in RESULT_CLASSES for node in graph.values()):
        raise CannotPublish(
            "no_result",
            "the graph has no Result node, so a request would return nothing. Add one (NeuroLux > Result), link "
            "your images to it, and publish again",
        )
    seen: dict[str, str] = {}
    for node_id, node in graph.items():
        if PARAMETER_CLASS.fullmatch(node["class_type"]):
            name = _check_parameter(node_id, node["inputs"])
            if name in seen:
                raise CannotPublish(
                    "bad_parameter", f"nodes {seen[name]} and {node_id} are both parameters named {name!r}; rename one"
                )
            seen[name] = node_id


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def _check_parameter(node_id: str, inputs: Mapping[str, Any]) -> str:
    name = inputs.get("name")
    if not isinstance(name, str) or not name.isidentifier():
        raise CannotPublish(
            "bad_parameter", f"node {node_id}: {name!r} cannot be a parameter's name; use one such as 'strength'"
        )
    if name in RESERVED:
        raise CannotPublish(
            "bad_parameter", f"node {node_id}: {name!r} is a field of every request; choose another name"
        )
    if any(isinstance(inputs.get(key), list) for key in VALUE_INPUTS):
        raise CannotPublish(
            "bad_parameter", f"parameter {name!r}: its value comes from another node, so no request can set it"
        )
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
