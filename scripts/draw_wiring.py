#!/usr/bin/env python3
"""Draws how each node is linked in the shipped graphs, for its help page: custom_nodes/neurolux/web/docs/wiring.

python -m scripts.draw_wiring

A picture shows the node in the graph in which it has most links, with the nodes before and after it. A node that no
shipped graph has is drawn in the place of one that it can replace.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GRAPHS = ROOT / "workflows"
DOCS = ROOT / "custom_nodes" / "neurolux" / "web" / "docs"
PICTURES = DOCS / "wiring"
NAMES = ROOT / "custom_nodes" / "neurolux" / "locales" / "en" / "nodeDefs.json"
IN_PLACE_OF = {
    "NeuroLuxLoadFlux": "NeuroLuxLoadModel",
    "NeuroLuxLoadSDXLLightning": "NeuroLuxLoadModel",
    "NeuroLuxLoadModelFiles": "NeuroLuxLoadModel",
    "NeuroLuxApplyLoras": "NeuroLuxApplyLora",
}
COLORS = {
    "NEUROLUX_PIPELINE": "#2ec4b6", "NEUROLUX_FILE": "#8fb5c9", "CONDITIONING": "#e0913a", "LATENT": "#d772c4",
    "IMAGE": "#64b5f6", "MASK": "#81c784",
}  # fmt: skip
"""As sockets have them: ours as in web/js/socket_colors.js, the stock ones as in the editor's dark theme."""
PLAIN = "#9a9a9a"
MOST_USED = "text-to-image"
LONGEST_TITLE = 20
BOX, TITLE, ROW, GAP, MARGIN, BETWEEN = 160, 24, 18, 14, 12, 90
"""Pixels: a box's width, the height of its title and of a socket, between boxes, around all, between columns."""


@dataclass(frozen=True)
class Link:
    """One link of the drawn node: the other node, the sockets' names, and the type."""

    other: str
    own_socket: str
    other_socket: str
    type: str


@dataclass(frozen=True)
class Wiring:
    """A node with the links into it and out of it."""

    title: str
    before: tuple[Link, ...]
    after: tuple[Link, ...]


def wirings() -> dict[str, Wiring]:
    """How each of our nodes that a shipped graph has, or could have in place of another, is linked."""
    names = {node: each["display_name"] for node, each in json.loads(NAMES.read_text(encoding="utf-8")).items()}
    best: dict[str, Wiring] = {}
    for path in sorted(GRAPHS.glob("*.json"), key=lambda path: (path.stem != MOST_USED, path.stem)):
        for node_type, found in _read(json.loads(path.read_text(encoding="utf-8")), names):
            known = best.get(node_type)
            if known is None or len(found.before + found.after) > len(known.before + known.after):
                best[node_type] = found
    for node_type, like in IN_PLACE_OF.items():
        best[node_type] = Wiring(names[node_type], best[like].before, best[like].after)
    return {node_type: found for node_type, found in best.items() if found.before or found.after}


def _read(graph: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[tuple[str, Wiring]]:
    nodes = {node["id"]: node for node in graph["nodes"]}

    def title(node: Mapping[str, Any]) -> str:
        return node.get("title") or names.get(node["type"], node["type"])

    def end(node_id: int, side: str, slot: int) -> tuple[str, str]:
        socket = nodes[node_id][side][slot]
        return title(nodes[node_id]), str(socket.get("label") or socket.get("localized_name") or socket["name"])

    for node_id, node in nodes.items():
        if not node["type"].startswith("NeuroLux"):
            continue
        before, after = [], []
        for _, source, out, target, into, kind in graph["links"]:
            (giver, given), (taker, taken) = end(source, "outputs", out), end(target, "inputs", into)
            if target == node_id:
                before.append(Link(giver, taken, given, str(kind)))
            if source == node_id:
                after.append(Link(taker, given, taken, str(kind)))
        yield node["type"], Wiring(names[node["type"]], tuple(before), tuple(after))


def drawing(wiring: Wiring) -> str:
    """The picture as SVG."""
    left, right = _boxes(wiring.before), _boxes(wiring.after)
    inputs = list(dict.fromkeys(link.own_socket for link in wiring.before))
    outputs = list(dict.fromkeys(link.own_socket for link in wiring.after))
    own_height = TITLE + ROW * max(len(inputs), len(outputs), 1)
    heights = [_column_height(left), own_height, _column_height(right)]
    height = max(heights) + 2 * MARGIN
    columns = [bool(left), True, bool(right)]
    starts = [MARGIN + sum(columns[:n]) * (BOX + BETWEEN) for n in range(3)]
    width = MARGIN + sum(columns) * (BOX + BETWEEN) - BETWEEN + MARGIN
    top = (height - own_height) / 2
    shapes = [_box(starts[1], top, wiring.title, inputs, outputs, strong=True)]
    for links, boxes, x, side in ((wiring.before, left, starts[0], "in"), (wiring.after, right, starts[2], "out")):
        y = (height - _column_height(boxes)) / 2
        for name, sockets in boxes.items():
            shapes.append(_box(x, y, name, *(([], sockets) if side == "in" else (sockets, []))))
            for link in (each for each in links if each.other == name):
                there = y + TITLE + ROW * (sockets.index(link.other_socket) + 0.5)
                own = (inputs if side == "in" else outputs).index(link.own_socket)
                here = top + TITLE + ROW * (own + 0.5)
                ends = (x + BOX, there, starts[1], here) if side == "in" else (starts[1] + BOX, here, x, there)
                shapes.insert(0, _curve(*ends, COLORS.get(link.type, PLAIN)))
            y += TITLE + ROW * len(sockets) + GAP
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:g}" viewBox="0 0 {width} {height:g}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height:g}" rx="8" fill="#1f1f1f"/>\n{body}\n</svg>\n'
    )


def _boxes(links: Sequence[Link]) -> dict[str, list[str]]:
    """The nodes on one side, and which of their sockets are linked."""
    found: dict[str, list[str]] = {}
    for link in links:
        sockets = found.setdefault(link.other, [])
        if link.other_socket not in sockets:
            sockets.append(link.other_socket)
    return found


def _column_height(boxes: Mapping[str, Sequence[str]]) -> int:
    return sum(TITLE + ROW * len(sockets) + GAP for sockets in boxes.values()) - GAP if boxes else 0


def _box(x: float, y: float, title: str, inputs: Sequence[str], outputs: Sequence[str], *, strong: bool = False) -> str:
    height = TITLE + ROW * max(len(inputs), len(outputs), 1)
    shown = title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 1]}…"
    fill, edge = ("#3d4657", "#e8e8e8") if strong else ("#353535", "#555555")
    lines = [
        f'<rect x="{x:g}" y="{y:g}" width="{BOX}" height="{height}" rx="6" fill="{fill}" stroke="{edge}"/>',
        f'<text x="{x + 10:g}" y="{y + 16:g}" fill="#eeeeee" font-weight="bold">{escape(shown)}</text>',
    ]
    for sockets, at, anchor in ((inputs, x + 10, "start"), (outputs, x + BOX - 10, "end")):
        for n, name in enumerate(sockets):
            middle = y + TITLE + ROW * (n + 0.5) + 1
            lines.append(f'<text x="{at:g}" y="{middle:g}" fill="#bbbbbb" text-anchor="{anchor}">{escape(name)}</text>')
    return "\n".join(lines)


def _curve(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    bend = (x2 - x1) / 2
    path = f"M{x1:g} {y1:g}C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"
    dots = "".join(f'<circle cx="{x:g}" cy="{y:g}" r="4" fill="{color}"/>' for x, y in ((x1, y1), (x2, y2)))
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2.5"/>{dots}'


def pictures() -> dict[Path, str]:
    """The files, with the content that they should have."""
    return {PICTURES / f"{node_type}.svg": drawing(found) for node_type, found in wirings().items()}


def reference(node_type: str) -> str:
    """The line of a help page that shows the picture."""
    return f"![how it is linked](wiring/{node_type}.svg)"


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for file, content in pictures().items():
        file.write_text(content, encoding="utf-8")
        page = DOCS / f"{file.stem}.md"
        text = page.read_text(encoding="utf-8")
        if reference(file.stem) not in text:
            page.write_text(f"{text.rstrip()}\n\n{reference(file.stem)}\n", encoding="utf-8")
