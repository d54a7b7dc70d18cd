"""Small API-format graphs for the client tests."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

_colours = itertools.count(1)

Graph = dict[str, dict[str, Any]]


def new_id() -> str:
    return str(uuid.uuid4())


def make_image(save: bool = False, colour: int | None = None) -> Graph:
    """EmptyImage -> PreviewImage or SaveImage; by default never the same one twice, so never cached."""
    empty = {"width": 32, "height": 32, "batch_size": 1, "color": next(_colours) if colour is None else colour}
    output = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    if save:
        output = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "test"}}
    return {"1": {"class_type": "EmptyImage", "inputs": empty}, "2": output}


def slow(steps: int, node: str = "TestSlow", salt: str | None = None) -> Graph:
    """A node that takes `steps` tenths of a second -> PreviewImage."""
    return {
        "1": {"class_type": node, "inputs": {"steps": steps, "salt": new_id() if salt is None else salt}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
