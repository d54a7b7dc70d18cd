"""How the editor finds and shows the nodes: rules over all of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from neurolux.families.registry import families

from bridge.modes.library import SHIPPED_WORKFLOWS
from tests.pack.comfy_server import ComfyServer

RARE = {
    "precision", "offload", "compile", "vae", "text_encoder", "text_encoder_2", "filename_prefix",
    "person_score", "joint_score", "max_length", "description",
}  # fmt: skip
"""Inputs that a person rarely changes, on whichever node they are."""
LISTS = {"model", "lora", "controlnet", "motion", "upscaler"}
CHAIN = {"NeuroLuxLoadModel", "NeuroLuxEncodePrompt", "NeuroLuxSample", "NeuroLuxDecode"}


@pytest.fixture(scope="module")
def nodes(comfyui: ComfyServer) -> dict[str, dict[str, Any]]:
    """Our nodes as the editor knows them. A node without a row in the table of manners would fail to load."""
    return {name: info for name, info in comfyui.get("/object_info").items() if name.startswith("NeuroLux")}


def inputs_of(info: dict[str, Any]) -> dict[str, Any]:
    """Type and options of each input."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def test_rarely_changed_inputs_are_advanced_and_no_socket_is(nodes: dict[str, dict[str, Any]]) -> None:
    for name, info in nodes.items():
        inputs = inputs_of(info)
        advanced = {key for key, (_, options) in inputs.items() if options.get("advanced")}
        assert RARE & set(inputs) <= advanced, name
        assert set(inputs) - advanced, f"{name} shows nothing"
        sockets = {key for key, (kind, _) in inputs.items() if kind in ("IMAGE", "LATENT", "NEUROLUX_PIPELINE")}
        assert not sockets & advanced, name


def test_no_input_of_an_app_of_ours_is_advanced(nodes: dict[str, dict[str, Any]]) -> None:
    """The editor's app view shows the name of such an input and no field."""
    for path in sorted(SHIPPED_WORKFLOWS.glob("*.json")):
        workflow = json.loads(path.read_bytes())
        types = {node["id"]: node["type"] for node in workflow["nodes"]}
        for node, widget, *_ in workflow["extra"]["linearData"]["inputs"]:
            inputs = inputs_of(nodes.get(types[node], {"input": {}}))
            assert not inputs.get(widget, ("", {}))[1].get("advanced"), (path.stem, widget)


def test_every_seed_has_one_control_and_every_list_of_files_is_a_list(nodes: dict[str, dict[str, Any]]) -> None:
    """The editor adds the control behind the widget; a value that is no seed would have a widget too many."""
    for name, info in nodes.items():
        inputs = inputs_of(info)
        controlled = [key for key, (_, options) in inputs.items() if options.get("control_after_generate")]
        assert controlled == [key for key in inputs if key == "seed"], name
        for key in LISTS & set(inputs):
            kind, options = inputs[key]
            assert kind == "COMBO", (name, key)
            assert options["options"], (name, key)


def test_a_comfyui_that_knows_aliases_finds_each_node_by_other_words(nodes: dict[str, dict[str, Any]]) -> None:
    """The pinned one does not: there the names alone are searched."""
    known = {name: info["search_aliases"] for name, info in nodes.items() if "search_aliases" in info}
    assert not known or set(known) == set(nodes)
    for name, aliases in known.items():
        assert aliases, name
        assert nodes[name]["display_name"].lower() not in aliases, name
    for family in families().values() if known else ():
        hits = {name for name, aliases in known.items() if family.name in aliases}
        assert hits >= CHAIN | ({family.loader.node_id} if family.loader else set()), family.name
