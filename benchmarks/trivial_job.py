"""The job of the benchmark: an empty 512x512 image, saved as PNG, so that nearly all of its time is overhead."""

from __future__ import annotations

import json
from typing import Any

from bridge.settings import Settings

MODE = "trivial"


def prefix(color: int) -> str:
    """A folder for every thousand jobs: the node that saves lists its whole folder to find the next free name."""
    return f"bench{color // 1000}/x"


def graph(color: int) -> dict[str, Any]:
    """The job in API format; another colour each time, so that ComfyUI's cache does not answer."""
    return {
        "1": {
            "class_type": "NeuroLuxIntegerParameter",
            "inputs": {
                "name": "color", "value": color, "minimum": 0, "maximum": 16777215, "step": 1, "description": ""
            },
        },
        "2": {
            "class_type": "NeuroLuxTextParameter",
            "inputs": {"name": "prompt", "value": "", "description": "", "required": False, "max_length": 100},
        },
        "3": {
            "class_type": "EmptyImage",
            "inputs": {"width": 512, "height": 512, "batch_size": 1, "color": ["1", 0]},
        },
        "4": {
            "class_type": "NeuroLuxResult",
            "inputs": {
                "images": ["3", 0], "name": "images", "output_format": "png", "quality": 90,
                "filename_prefix": ["5", 0],
            },
        },
        "5": {
            "class_type": "NeuroLuxTextParameter",
            "inputs": {
                "name": "prefix", "value": prefix(color), "description": "", "required": False, "max_length": 100
            },
        },
    }  # fmt: skip


def body(color: int) -> dict[str, Any]:
    """The job as the bridge takes it."""
    return {"prompt": "bench", "mode": MODE, "color": color, "prefix": prefix(color)}


def write_mode(settings: Settings) -> None:
    """Save the job's graph as a mode."""
    api = settings.workflows / "api"
    api.mkdir(parents=True)
    (settings.workflows / f"{MODE}.json").write_text(json.dumps({"nodes": [], "links": []}))
    (api / f"{MODE}.json").write_text(json.dumps(graph(0)))
