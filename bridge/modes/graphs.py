"""Graphs in ComfyUI's API format, and the one graph that no file holds: the one that loads a model."""

from __future__ import annotations

from typing import Any

Graph = dict[str, dict[str, Any]]
"""Nodes by id, each with its `class_type` and its `inputs`: what ComfyUI's `/prompt` takes."""


def load_graph(model: str) -> Graph:
    """The graph that loads a model and does nothing else."""
    loader = {"model": model, "precision": "auto", "offload": "auto"}
    return {
        "1": {"class_type": "NeuroLuxLoadModel", "inputs": loader, "_meta": {"title": "Load Model"}},
        "2": {"class_type": "NeuroLuxWarmUp", "inputs": {"pipeline": ["1", 0]}, "_meta": {"title": "Warm Up"}},
    }
