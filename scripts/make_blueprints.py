#!/usr/bin/env python3
"""Makes subgraph blueprints of shipped graphs: custom_nodes/neurolux/subgraphs, which the node library lists.

python -m scripts.make_blueprints

A blueprint is one node that holds a graph without its loaders of images and its results: images go in, images come out.
What the graph's app offers as inputs is shown on it, under the names that requests use.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GRAPHS = ROOT / "workflows"
BLUEPRINTS = ROOT / "custom_nodes" / "neurolux" / "subgraphs"
CHAINS = {
    "text-to-image": "Text to Image",
    "image-to-image": "Image to Image",
    "inpaint": "Inpaint",
    "outpaint": "Outpaint",
    "edit": "Edit Image",
    "upscale": "Upscale and Refine",
}
"""The graphs, and what each is called in the node library."""
OUTSIDE = ("MarkdownNote", "NeuroLuxLoadImage", "LoadImage", "NeuroLuxResult", "PreviewImage")
INPUT_NODE, OUTPUT_NODE = -10, -20
"""The editor's ids of the two ends of a subgraph."""
CATEGORY = "NeuroLux"
IDS = uuid.UUID("3b5a0f2e-6a1c-4c55-9a53-0d1f6a7e2b11")
HOST_ID, HOST_WIDTH, ROW = 1, 400, 30


class Blueprint:
    """A graph on its way into one node."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.title = f"{CHAINS[name]} (NeuroLux)"
        self.graph: dict[str, Any] = json.loads((GRAPHS / f"{name}.json").read_text(encoding="utf-8"))
        self.inner = {node["id"]: node for node in self.graph["nodes"] if node["type"] not in OUTSIDE}
        self.links = [self._link(*link) for link in self.graph["links"]]
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []

    def made(self) -> dict[str, Any]:
        """The content of its file."""
        kept = [link for link in self.links if link["origin_id"] in self.inner and link["target_id"] in self.inner]
        entering = [each for each in self.links if each not in kept and each["target_id"] in self.inner]
        leaving = [each for each in self.links if each not in kept and each["origin_id"] in self.inner]
        kept += [{**link, "origin_id": INPUT_NODE, "origin_slot": self._socket(link)} for link in entering]
        kept += [{**link, "target_id": OUTPUT_NODE, "target_slot": self._result(link)} for link in leaving]
        kept += self._widgets(max(link["id"] for link in self.links))
        for end, slots in (("origin", self.inputs), ("target", self.outputs)):
            node = INPUT_NODE if end == "origin" else OUTPUT_NODE
            for n, slot in enumerate(slots):
                slot["linkIds"] = [k["id"] for k in kept if (k[f"{end}_id"], k[f"{end}_slot"]) == (node, n)]
        self._note_links(kept)
        return self._file(kept)

    def _link(self, link_id: int, origin: int, out: int, target: int, into: int, kind: str) -> dict[str, Any]:
        ends = {"origin_id": origin, "origin_slot": out, "target_id": target, "target_slot": into}
        return {"id": link_id, **ends, "type": kind}

    def _id(self, *parts: str) -> str:
        return str(uuid.uuid5(IDS, "/".join((self.name, *parts))))

    def _socket(self, link: dict[str, Any]) -> int:
        """The position of the input that an outer node's output becomes: images and masks have their own names."""
        outer = next(node for node in self.graph["nodes"] if node["id"] == link["origin_id"])
        socket = self.inner[link["target_id"]]["inputs"][link["target_slot"]]["name"]
        key = self._id("socket", str(outer["id"]), str(link["origin_slot"]))
        for n, known in enumerate(self.inputs):
            if known["id"] == key:
                return n
        self.inputs.append({"id": key, "name": socket, "type": link["type"]})
        return len(self.inputs) - 1

    def _result(self, link: dict[str, Any]) -> int:
        node = self.inner[link["origin_id"]]
        key = self._id("output", str(node["id"]), str(link["origin_slot"]))
        for n, known in enumerate(self.outputs):
            if known["id"] == key:
                return n
        name = node["outputs"][link["origin_slot"]]["name"]
        self.outputs.append({"id": key, "name": name, "type": link["type"]})
        return len(self.outputs) - 1

    def _widgets(self, last_link: int) -> list[dict[str, Any]]:
        """Links from the inputs of the app to the widgets inside."""
        interface = json.loads((GRAPHS / "api" / f"{self.name}.interface.json").read_text(encoding="utf-8"))
        made: list[dict[str, Any]] = []
        for one in interface["parameters"]:
            node_id, widget = int(one["targets"][0][0]), one["targets"][0][1]
            if node_id not in self.inner:
                continue
            slots = self.inner[node_id]["inputs"]
            into = next(n for n, slot in enumerate(slots) if slot.get("widget", {}).get("name") == widget)
            self.inputs.append(
                {"id": self._id("widget", one["name"]), "name": one["name"], "type": slots[into]["type"]}
            )
            ends = (INPUT_NODE, len(self.inputs) - 1, node_id, into)
            made.append(self._link(last_link + len(made) + 1, *ends, slots[into]["type"]))
        return made

    def _note_links(self, links: list[dict[str, Any]]) -> None:
        """Slots name their links too."""
        for node in self.inner.values():
            for n, slot in enumerate(node["inputs"]):
                own = [k["id"] for k in links if (k["target_id"], k["target_slot"]) == (node["id"], n)]
                slot["link"] = own[0] if own else None
            for n, slot in enumerate(node.get("outputs", ())):
                slot["links"] = [k["id"] for k in links if (k["origin_id"], k["origin_slot"]) == (node["id"], n)]

    def _file(self, links: list[dict[str, Any]]) -> dict[str, Any]:
        widgets = {self._id("widget", each["name"]) for each in self.inputs}
        left = min(node["pos"][0] for node in self.inner.values())
        right = max(node["pos"][0] + node["size"][0] for node in self.inner.values())
        top = min(node["pos"][1] for node in self.inner.values())
        last = {"lastNodeId": max(self.inner), "lastLinkId": max(link["id"] for link in links)}
        definition = {
            "id": self._id(), "version": 1, "revision": 0, "config": {}, "name": self.title, "category": CATEGORY,
            "state": {"lastGroupId": 0, "lastRerouteId": 0, **last},
            "inputNode": {"id": INPUT_NODE, "bounding": [left - 220, top, 150, 40 + 20 * len(self.inputs)]},
            "outputNode": {"id": OUTPUT_NODE, "bounding": [right + 70, top, 120, 60]},
            "inputs": self.inputs, "outputs": self.outputs, "widgets": [],
            "nodes": list(self.inner.values()), "groups": [], "links": links, "extra": {},
        }  # fmt: skip
        slots = [
            {"name": each["name"], "type": each["type"], "link": None}
            | ({"widget": {"name": each["name"]}} if each["id"] in widgets else {})
            for each in self.inputs
        ]
        host = {
            "id": HOST_ID, "type": definition["id"], "title": self.title, "pos": [0, 0],
            "size": [HOST_WIDTH, 60 + ROW * len(self.inputs)], "flags": {}, "order": 0, "mode": 0, "inputs": slots,
            "outputs": [{"name": each["name"], "type": each["type"], "links": []} for each in self.outputs],
            "properties": {}, "widgets_values": [],
        }  # fmt: skip
        return {
            "id": self._id("file"), "revision": 0, "last_node_id": HOST_ID, "last_link_id": 0, "nodes": [host],
            "links": [], "groups": [], "definitions": {"subgraphs": [definition]}, "config": {}, "extra": {},
            "version": 0.4,
        }  # fmt: skip


def blueprints() -> dict[Path, str]:
    """The files, with the content that they should have."""
    made = (Blueprint(name) for name in CHAINS)
    return {
        BLUEPRINTS / f"{each.title}.json": json.dumps(each.made(), indent=1, ensure_ascii=False) + "\n" for each in made
    }


if __name__ == "__main__":
    BLUEPRINTS.mkdir(exist_ok=True)
    for file, content in blueprints().items():
        file.write_text(content, encoding="utf-8")
