"""A graph that takes what a request may say and draws an empty image: all of the service but the drawing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def _integer(name: str, value: int, minimum: int, maximum: int) -> dict[str, Any]:
    inputs = {"name": name, "value": value, "minimum": minimum, "maximum": maximum, "step": 1, "description": ""}
    return {"class_type": "NeuroLuxIntegerParameter", "inputs": inputs}


def _text(name: str, required: bool) -> dict[str, Any]:
    inputs = {"name": name, "value": "", "description": "", "required": required, "max_length": 10_000}
    return {"class_type": "NeuroLuxTextParameter", "inputs": inputs}


def _number(name: str, value: float, minimum: float, maximum: float) -> dict[str, Any]:
    inputs = {"name": name, "value": value, "minimum": minimum, "maximum": maximum, "step": 0.1, "description": ""}
    return {"class_type": "NeuroLuxNumberParameter", "inputs": inputs}


GRAPH: dict[str, dict[str, Any]] = {
    "1": _text("prompt", required=True),
    "2": _text("negative_prompt", required=False),
    "3": _integer("width", 32, 16, 64),
    "4": _integer("height", 32, 16, 64),
    "5": _integer("num_images", 1, 1, 4),
    "6": _integer("num_inference_steps", 1, 1, 1000),
    "7": _number("guidance_scale", 0.0, 0.0, 100.0),
    "8": _integer("seed", 0, 0, 2**53 - 1),
    "9": {
        "class_type": "NeuroLuxChoiceParameter",
        "inputs": {"name": "output_format", "value": "png", "choices": "png\njpeg\nwebp", "description": ""},
    },
    "10": {
        "class_type": "EmptyImage",
        "inputs": {"width": ["3", 0], "height": ["4", 0], "batch_size": ["5", 0], "color": 0x336699},
    },
    "11": {
        "class_type": "NeuroLuxResult",
        "inputs": {
            "images": ["10", 0], "name": "images", "output_format": ["9", 0], "quality": 90, "filename_prefix": "t"
        },
    },
}  # fmt: skip


def write_trivial_mode(workflows: Path, name: str) -> None:
    """Save it as a mode of that name; one that ships with the project is hidden by it."""
    (workflows / "api").mkdir(parents=True, exist_ok=True)
    (workflows / f"{name}.json").write_text(json.dumps({"nodes": [], "links": []}))
    (workflows / "api" / f"{name}.json").write_text(json.dumps(GRAPH))
