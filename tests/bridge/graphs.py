"""A small graph in both formats, for tests that need a mode but no ComfyUI."""

from __future__ import annotations

import copy
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
    "4": {"class_type": "NeuroLuxSeedParameter", "inputs": {"name": "seed", "value": 0}},
    "9": {"class_type": "NeuroLuxResult", "inputs": {"images": ["8", 0]}},
}
WORKFLOW: dict[str, Any] = {
    "nodes": [
        {"id": 1, "type": "NeuroLuxTextParameter", "widgets_values": ["prompt", "a cat", "What to draw.", True]},
        {"id": 2, "type": "NeuroLuxNumberParameter", "widgets_values": ["strength", 0.5, 0.0, 1.0, 0.05, ""]},
        {"id": 4, "type": "NeuroLuxSeedParameter", "widgets_values": ["seed", 0, "randomize", ""]},
        {"id": 5, "type": "MarkdownNote", "widgets_values": ["# Paint a cat\n\nDraws\na cat.\n\nMore."]},
    ],
    "links": [],
}


def graph() -> dict[str, dict[str, Any]]:
    """A copy to change."""
    return copy.deepcopy(GRAPH)


def workflow() -> dict[str, Any]:
    """A copy to change."""
    return copy.deepcopy(WORKFLOW)
