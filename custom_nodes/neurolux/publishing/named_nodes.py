"""The inputs of a workflow of which nobody made an app: core's Primitive nodes and image loaders that have a title.

Front ends before 1.41 have no App Mode, and other people's graphs may hold no node of ours. A title that its author
gave to a value or an image is a name for it as good as a label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .app_mode import AppMode, read_app_mode
from .app_parameters import slug
from .definitions import Definition, options_of

PRIMITIVES = ("PrimitiveInt", "PrimitiveFloat", "PrimitiveString", "PrimitiveStringMultiline", "PrimitiveBoolean")
VALUE = "value"


def read_named_nodes(
    workflow: dict[str, Any],
    graph: Mapping[str, Any],
    definition: Callable[[str], Definition | None],
    usual_title: Callable[[str], str],
) -> AppMode | None:
    """The values and images that have a title of their own, as an app would give them; None if there are none."""
    entries = []
    for node_id, node in graph.items():
        title, kind = str(node.get("_meta", {}).get("title") or ""), node["class_type"]
        widget = VALUE if kind in PRIMITIVES else image_widget(definition(kind))
        if widget is not None and slug(title) and title not in (usual_title(kind), kind):
            entries.append([node_id, widget, {"name": slug(title)}])
    app = {"inputs": entries, "outputs": []}
    return read_app_mode({**workflow, "extra": {"linearData": app}}, graph) if entries else None


def image_widget(definition: Definition | None) -> str | None:
    """The name of the widget that uploads an image, if nodes of this definition have one."""
    found = [
        name
        for section in ("required", "optional")
        for name, spec in ((definition or {}).get(section) or {}).items()
        if options_of(spec).get("image_upload")
    ]
    return found[0] if found else None
