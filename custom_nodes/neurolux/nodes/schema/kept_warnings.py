"""What nodes warned of, for jobs in which ComfyUI takes their outputs from its cache and does not run them.

Only Result runs in every job. It tells what the nodes before it said when they ran with the same inputs. It also looks
at the graph for what no single node can see: whose transparency nothing takes up.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import folder_paths
import nodes as comfy_nodes
from comfy_api.latest import io
from comfy_execution.graph_utils import is_link
from comfy_execution.utils import get_executing_context

from ...images.decoding import UnreadableImage, is_see_through
from ...weights.user_files import open_regular

MOST_KEPT = 4096
IMAGE_LOADERS = ("LoadImage", "LoadImageOutput", "NeuroLuxLoadImage")
"""Nodes whose first output has the colours of the file ``image``, and whose second is its transparency."""
MASK_OUTPUT = 1


@dataclass(frozen=True)
class Told:
    """What a node said when it last ran with these inputs."""

    prompt_id: str
    warnings: tuple[str, ...]
    lazy: bool
    """Whether it took its lazy inputs."""


_told: OrderedDict[str, Told] = OrderedDict()
_lock = Lock()


def remember(node: type[io.ComfyNode], warnings: list[str], *, lazy: bool = False) -> None:
    """Keep what the running ``node``, whose schema asks for the prompt, says. No warnings count as well."""
    context, hidden = get_executing_context(), node.hidden
    if context is None or hidden is None or not hidden.prompt or context.node_id not in hidden.prompt:
        return
    key = signature(hidden.prompt, context.node_id, {})
    with _lock:
        before = _told.pop(key, None)
        if before is not None and before.prompt_id == context.prompt_id:  # it runs once for each item of a list
            warnings = [*dict.fromkeys([*before.warnings, *warnings])]
        _told[key] = Told(context.prompt_id, tuple(warnings), lazy)
        while len(_told) > MOST_KEPT:
            _told.popitem(last=False)


def told_before(node: type[io.ComfyNode]) -> list[str]:
    """What the user is to be told of the nodes before the running one that did not run themselves in this job."""
    context, hidden = get_executing_context(), node.hidden
    if context is None or hidden is None or not hidden.prompt or context.node_id not in hidden.prompt:
        return []
    prompt, known, found = hidden.prompt, {}, []
    for name in nodes_before(prompt, context.node_id, known):
        told = _told.get(signature(prompt, name, known))
        if told is not None and told.prompt_id != context.prompt_id:
            found += told.warnings
        found += unused_transparency(prompt, name)
    return list(dict.fromkeys(found))


def nodes_before(prompt: Mapping[str, Any], last: str, known: dict[str, str]) -> Iterator[str]:
    """The nodes that ``last`` depends on, without those behind a lazy input that was not taken."""
    seen, waiting = {last}, [last]
    while waiting:
        name = waiting.pop()
        told = _told.get(signature(prompt, name, known))
        for key, value in prompt[name].get("inputs", {}).items():
            source = value[0] if is_link(value) else None
            if source is None or source in seen or source not in prompt:
                continue
            if is_lazy(prompt[name], key) and not (told is not None and told.lazy):
                continue
            seen.add(source)
            waiting.append(source)
            yield source


def is_lazy(node: Mapping[str, Any], key: str) -> bool:
    """Whether a node asks for an input only when it needs it."""
    made = comfy_nodes.NODE_CLASS_MAPPINGS.get(node.get("class_type", ""))  # pyright: ignore[reportAttributeAccessIssue]
    if made is None:
        return False
    inputs = made.INPUT_TYPES()
    found = next((inputs[kind][key] for kind in ("required", "optional") if key in inputs.get(kind, {})), ())
    return len(found) > 1 and bool(found[1].get("lazy"))


def signature(prompt: Mapping[str, Any], name: str, known: dict[str, str]) -> str:
    """The same for nodes with the same inputs, and the same nodes before them: ComfyUI's cache has such a key."""
    found = known.get(name)
    if found is not None:
        return found
    node = prompt.get(name, {})
    known[name] = ""  # for a graph with a cycle, which ComfyUI refuses
    inputs = {
        key: [signature(prompt, value[0], known), value[1]] if is_link(value) else value
        for key, value in node.get("inputs", {}).items()
    }
    text = json.dumps([node.get("class_type"), inputs, node.get("is_changed")], sort_keys=True, default=repr)
    known[name] = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return known[name]


def unused_transparency(prompt: Mapping[str, Any], name: str) -> list[str]:
    """A warning if node ``name`` loads a partly transparent image, and nothing in the graph takes its mask."""
    node = prompt[name]
    image = node.get("inputs", {}).get("image")
    if node.get("class_type") not in IMAGE_LOADERS or not isinstance(image, str) or not image:
        return []
    links = (value for other in prompt.values() for value in other.get("inputs", {}).values() if is_link(value))
    if any(source == name and output == MASK_OUTPUT for source, output in links) or not see_through(image):
        return []
    return [
        f"{title_of(node) or image} is partly transparent and its transparency is not used: the colours below it "
        "count. Link its mask (to Encode Image or Prepare Mask), or send an image without transparency"
    ]


def title_of(node: Mapping[str, Any]) -> str:
    """The title that a graph gives to one of our nodes; empty if it has none of its own."""
    title = node.get("_meta", {}).get("title")
    made = comfy_nodes.NODE_DISPLAY_NAME_MAPPINGS.get(node.get("class_type", ""))  # pyright: ignore[reportAttributeAccessIssue]
    return title if isinstance(title, str) and title != made else ""


def see_through(image: str) -> bool:
    """Whether an image in ComfyUI's folders is partly transparent. One that has gone since is not."""
    try:
        with open_regular(Path(folder_paths.get_annotated_filepath(image))) as opened:
            return is_see_through(opened.read())
    except (OSError, UnreadableImage):
        return False
