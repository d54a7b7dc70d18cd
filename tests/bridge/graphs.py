"""A small graph in both formats, for tests that need a mode but no ComfyUI."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GRAPH: dict[str, dict[str, Any]] = {
    "1": {
        "class_type": "NeuroLuxTextParameter",
        "inputs": {"name": "prompt", "value": "a cat", "description": "What to draw.", "required": True},
    },
    "2": {
        "class_type": "NeuroLuxNumberParameter",
        "inputs": {"name": "strength", "value": 0.5, "minimum": 0.0, "maximum": 1.0, "step": 0.05},
    },
    "3": {
        "class_type": "NeuroLuxChoiceParameter",
        "inputs": {"name": "output_format", "value": "png", "choices": "png\njpeg\nwebp"},
    },
    "4": {
        "class_type": "NeuroLuxIntegerParameter",
        "inputs": {"name": "seed", "value": 0, "minimum": 0, "maximum": 2**53 - 1},
    },
    "9": {"class_type": "NeuroLuxResult", "inputs": {"images": ["8", 0]}},
}
WORKFLOW: dict[str, Any] = {
    "nodes": [
        {"id": 1, "type": "NeuroLuxTextParameter", "widgets_values": ["prompt", "a cat", "What to draw.", True]},
        {"id": 2, "type": "NeuroLuxNumberParameter", "widgets_values": ["strength", 0.5, 0.0, 1.0, 0.05, ""]},
        {"id": 4, "type": "NeuroLuxIntegerParameter", "widgets_values": ["seed", 0, 0, 2**53 - 1, 1, ""]},
        {"id": 5, "type": "MarkdownNote", "widgets_values": ["# Paint a cat\n\nDraws\na cat.\n\nMore."]},
    ],
    "links": [],
}


def chosen(kind: str, name: str, value: Any = "", **more: Any) -> dict[str, Any]:
    """A stock node whose widget the author of the graph chose as an input of the app; `write_graph` publishes it."""
    return {"class_type": "Stock", "inputs": {"widget": value}, "field": {"kind": kind, "name": name, **more}}


def write_graph(path: Path, nodes: Mapping[str, Mapping[str, Any]], workflow: Mapping[str, Any] | None = None) -> None:
    """Save a mode as *Publish as mode* does; without a workflow, `path` itself holds the graph in API format."""
    fields = [
        {"targets": [[key, "widget"]], "default": node["inputs"]["widget"], **node["field"]}
        for key, node in nodes.items()
        if "field" in node
    ]
    plain = {key: {part: node[part] for part in node if part != "field"} for key, node in nodes.items()}
    api = path.parent / "api"
    api.mkdir(parents=True, exist_ok=True)
    if fields:
        (api / f"{path.stem}.interface.json").write_text(
            json.dumps({"version": 1, "parameters": fields, "results": []})
        )
    if workflow is None:
        path.write_text(json.dumps(plain))
        return
    (api / path.name).write_text(json.dumps(plain))
    path.write_text(json.dumps(workflow))


def graph() -> dict[str, dict[str, Any]]:
    """A copy to change."""
    return copy.deepcopy(GRAPH)


def workflow() -> dict[str, Any]:
    """A copy to change."""
    return copy.deepcopy(WORKFLOW)
