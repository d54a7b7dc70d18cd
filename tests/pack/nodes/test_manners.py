"""How the editor finds and shows the nodes: one row a node, and none too many."""

from __future__ import annotations

from typing import Any

from tests.pack.comfy_server import ComfyServer


def shown_as_advanced(info: dict[str, Any]) -> set[str]:
    """The inputs of a node that Nodes 2.0 and the side panel show on demand."""
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    return {name for name, (_, options) in inputs.items() if options.get("advanced")}


def test_every_node_is_found_by_other_words_and_hides_only_inputs_that_it_has(
    comfyui: ComfyServer, comfy_modules: None
) -> None:
    from neurolux.nodes import NODES
    from neurolux.nodes.load import FamilyLoader
    from neurolux.nodes.manners import MANNERS, manners_of

    known = {name: info for name, info in comfyui.get("/object_info").items() if name.startswith("NeuroLux")}
    loaders = {node.define_schema().node_id for node in NODES if issubclass(node, FamilyLoader)}
    assert set(known) - loaders == set(MANNERS)
    for node in NODES:
        schema = node.define_schema()
        manners = manners_of(schema.node_id)
        assert manners.aliases, schema.node_id
        assert schema.display_name.lower() not in manners.aliases, schema.node_id
        assert set(manners.advanced) == shown_as_advanced(known[schema.node_id]), schema.node_id
        info = known[schema.node_id]
        if "search_aliases" in info:  # A ComfyUI that knows the field.
            assert info["search_aliases"] == list(manners.aliases)
            assert info.get("essentials_category") == manners.essentials


def test_every_seed_has_one_control_and_every_list_of_files_is_a_list(comfyui: ComfyServer) -> None:
    """The editor adds the control behind the widget; a value that is no seed would have a widget too many."""
    for name, info in comfyui.get("/object_info").items():
        if not name.startswith("NeuroLux"):
            continue
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        controlled = [key for key, (_, options) in inputs.items() if options.get("control_after_generate")]
        assert controlled == [key for key in inputs if key == "seed"], name
        for key in {"model", "lora", "controlnet", "motion", "upscaler"} & set(inputs):
            kind, options = inputs[key]
            assert kind == "COMBO", (name, key)
            assert options["options"], (name, key)


def test_a_familys_name_finds_the_nodes_of_an_image_and_its_own_loader(comfy_modules: None) -> None:
    from neurolux.families.registry import families
    from neurolux.nodes import NODES
    from neurolux.nodes.manners import manners_of

    found = {node_id: manners_of(node_id).aliases for node_id in (node.define_schema().node_id for node in NODES)}
    for family in families().values():
        hits = {node_id for node_id, aliases in found.items() if family.name in aliases}
        chain = {"NeuroLuxLoadModel", "NeuroLuxEncodePrompt", "NeuroLuxSample", "NeuroLuxDecode"}
        assert hits >= chain | ({family.loader.node_id} if family.loader else set()), family.name
