"""File names in requests: finds those that lead out of the folder that they are meant for.

ComfyUI joins the name of an uploaded file with its input folder, and older versions check nothing else
(GHSA-rvxv-29p8-pxgq). So graphs are checked before they are queued. Pure: the nodes' schemas are passed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

ANNOTATIONS = ("[output]", "[input]", "[temp]")
UNQUOTED = 3
"""How often a name may have been percent-encoded."""
_DRIVE = re.compile(r"[A-Za-z]:")
_SUSPECT = re.compile(r'\\|\.\.|%|\x00|"\s*/|"\s*[A-Za-z]:', re.ASCII)
"""Every JSON text with a name that leads out of its folder contains one of these."""
_PATH_INPUT = re.compile(r"(^|_)(file|filename|folder|path|dir|directory|subfolder|prefix)s?(_|$)")
_CORE_MODULES = ("nodes", "comfy_extras.")
_UPLOADS = ("upload", "remote", "image_folder")

Folders = Sequence[str]
"""ComfyUI's own folders: an absolute path into one of them is as good as a name."""
Schema = Callable[[str], Mapping[str, Any] | None]
"""A node class's `INPUT_TYPES` by its name; None if there is no such node."""


@dataclass(frozen=True)
class BadName:
    """A name in a graph that leads out of its folder."""

    node_id: str
    class_type: str
    input: str
    value: str


def leaves_folder(name: str) -> bool:
    """Whether a name is absolute, climbs with `..`, or would after decoding. Both slashes separate, on any system."""
    forms = {name}
    for _ in range(UNQUOTED):
        forms |= {unquote(form) for form in forms}
    # ComfyUI cuts the annotation and the character before it, whichever that is.
    forms |= {form.rstrip()[: -len(end) - 1] for form in forms for end in ANNOTATIONS if form.rstrip().endswith(end)}
    return any(_leaves(form) for form in forms)


def _leaves(name: str) -> bool:
    path = name.replace("\\", "/")
    if "\0" in path or path.startswith("/") or _DRIVE.match(path):
        return True
    # Windows ignores dots and spaces at the end of a name.
    return any(not part.strip(". ") and ".." in part for part in path.split("/"))


def inside(name: str, folders: Folders) -> bool:
    """Whether a name is an absolute path into one of the folders."""
    starts = (folder.rstrip("/\\") + separator for folder in folders for separator in "/\\")
    return any(name.startswith(start) and not leaves_folder(name[len(start) :]) for start in starts)


def is_core_module(module: str) -> bool:
    """Whether nodes of this Python module are part of ComfyUI (`RELATIVE_PYTHON_MODULE`)."""
    return module.startswith(_CORE_MODULES)


def suspicious(text: str) -> bool:
    """Whether a JSON text can contain such a name at all: most cannot, and are not parsed a second time."""
    return _SUSPECT.search(text) is not None


def bad_names(graph: Any, schema: Schema, core: Callable[[str], bool], folders: Folders = ()) -> Iterator[BadName]:
    """The names in an API graph that lead out of their folders. `core`: whether a node class is ComfyUI's own."""

    def leaves(text: str) -> bool:
        return leaves_folder(text) and not inside(text, folders)

    if not isinstance(graph, dict):
        return
    for node_id, node in graph.items():
        if not isinstance(node, dict) or not isinstance(node.get("inputs"), dict):
            continue
        class_type = node.get("class_type")
        if not isinstance(class_type, str):
            continue
        for name, value in node["inputs"].items():
            if not _is_link(graph, value):
                for text in _texts(value):
                    if leaves(text) and _is_file(class_type, name, text, schema, core):
                        yield BadName(str(node_id), class_type, name, text)
            elif _is_file(class_type, name, None, schema, core):
                for text in _linked_texts(graph, value):
                    if leaves(text):
                        yield BadName(str(node_id), class_type, name, text)


def _is_link(graph: Mapping[str, Any], value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in graph


def _texts(value: Any) -> Iterator[str]:
    """The strings in a value: a name, a list of names, a record such as that of Load3D."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _linked_texts(graph: Mapping[str, Any], link: list[Any]) -> Iterator[str]:
    """The strings of all nodes that a link comes from: any of them may become the name."""
    waiting, seen = [link[0]], set[str]()
    while waiting:
        node_id = waiting.pop()
        node = graph.get(node_id)
        if node_id in seen or not isinstance(node, dict) or not isinstance(node.get("inputs"), dict):
            continue
        seen.add(node_id)
        for value in node["inputs"].values():
            if _is_link(graph, value):
                waiting.append(value[0])
            else:
                yield from _texts(value)


def _is_file(class_type: str, name: str, text: str | None, schema: Schema, core: Callable[[str], bool]) -> bool:
    """Whether an input takes the name of a file, and `text` is not one that ComfyUI itself offers for it.

    Free text may say anything. What is chosen from a list, or uploaded, is a name; so are the file and folder names
    that ComfyUI's own nodes take as text. Other packs' nodes may take paths on purpose.
    """
    types = schema(class_type)
    if types is None:
        return False  # ComfyUI refuses the graph
    kind, options = _input(types, name)
    if any(sign in key for key in options for sign in _UPLOADS):
        return True
    if kind == "STRING":
        return core(class_type) and _PATH_INPUT.search(name.lower()) is not None
    if text is None:  # a link: of an image, a model, ... unless its type is a list
        return isinstance(kind, list | tuple) or kind == "COMBO"
    offered = kind if isinstance(kind, list | tuple) else options.get("options") or ()
    return text not in offered


def _input(types: Mapping[str, Any], name: str) -> tuple[Any, Mapping[str, Any]]:
    """The type and the options of an input. Names with a dot belong to a dynamic input: `file.image` to `file`."""
    for section in ("required", "optional"):
        inputs = types.get(section) or {}
        found = inputs.get(name) or inputs.get(name.split(".")[0])
        if found:
            options = found[1] if len(found) > 1 and isinstance(found[1], dict) else {}
            return found[0], options
    return None, {}
