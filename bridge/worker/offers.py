"""The options of ComfyUI's combo widgets, read from its `/object_info` for a gateway that asks.

ComfyUI looks into its folders each time, so a new file is offered at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIError
from bridge.contract import WidgetOptions

log = logging.getLogger(__name__)


async def options_for(comfy: ComfyUI, question: bytes) -> WidgetOptions:
    """The options of each widget that a gateway asks about, or null if it has none or ComfyUI does not answer."""
    widgets: list[list[str]] = json.loads(question)
    classes = sorted({class_type for class_type, _ in widgets})
    found = await asyncio.gather(*(_node(comfy, class_type) for class_type in classes))
    nodes = dict(zip(classes, found, strict=True))
    return WidgetOptions([options_of(nodes[class_type], name) for class_type, name in widgets])


async def _node(comfy: ComfyUI, class_type: str) -> Mapping[str, Any]:
    try:
        return (await comfy.get_json(f"/object_info/{quote(class_type, safe='')}")).get(class_type) or {}
    except ComfyUIError as error:
        log.debug("ComfyUI does not describe %s: %s", class_type, error)
        return {}


def options_of(node: Mapping[str, Any], name: str) -> list[str] | None:
    """The options of a combo widget, from the `/object_info` of its node; None for any other input."""
    groups = node.get("input") or {}
    spec = next((groups[group][name] for group in ("required", "optional") if name in groups.get(group, {})), None)
    if not spec:
        return None
    # A V1 node has the list in the type's place, a V3 node (and some V1 ones) under "options".
    options = spec[0] if isinstance(spec[0], list) else None
    if spec[0] == "COMBO" and len(spec) > 1:
        options = spec[1].get("options")
    return options if isinstance(options, list) and all(isinstance(option, str) for option in options) else None
