"""File names that lead out of their folders, and those that do not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from neurolux.guard.names import bad_names, leaves_folder, suspicious

ESCAPES = [
    "../secret.png",
    "..",
    "a/../../secret.png",
    "imagegen/../../secret.png",
    "..\\secret.png",
    "a\\..\\..\\secret.png",
    "a/..\\b",
    "/etc/passwd",
    "//server/share/x.png",
    "\\\\server\\share\\x.png",
    "\\x.png",
    "C:\\x.png",
    "c:/x.png",
    "C:x.png",
    "../secret.png [output]",
    "../secret.png [input]",
    "../secret.png [temp]",
    "../secret.png[output]",
    "a/..x[output]",
    "/etc/passwd [input]",
    "../secret.png [output] [input]",
    "%2e%2e/secret.png",
    "%2e%2e%2fsecret.png",
    "..%2fsecret.png",
    "..%5Csecret.png",
    "%252e%252e%252fsecret.png",
    "%25252e%25252e%25252fsecret.png",
    "%2fetc%2fpasswd",
    "a/.. /secret.png",
    "a/ ../secret.png",
    "a/.../secret.png",
    "a/.. ./secret.png",
    "x.png\0.txt",
    "x%00.png",
]
INSIDE = [
    "",
    "x.png",
    "x (1).png",
    "imagegen/0123abcd.png",
    "sub/folder/x.png [output]",
    "a..b.png",
    "..hidden.png",
    "x...png",
    "wait.. what.png",
    "./x.png",
    "a/./b.png",
    "100%.png",
    "50%25.png",
    "größe.png",
    "[output].png",
    "x.png [output]",
    "SDXL\\model.safetensors",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_lead_out(name: str) -> None:
    assert leaves_folder(name)
    for ascii_only in (True, False):
        assert suspicious(json.dumps({"image": name}, ensure_ascii=ascii_only)), "the first look must not miss it"
    assert suspicious(json.dumps(name).replace(".", "\\u002e"))
    assert suspicious(json.dumps(name).replace("/", "\\/"))


@pytest.mark.parametrize("name", INSIDE)
def test_names_that_stay(name: str) -> None:
    assert not leaves_folder(name)


def test_an_ordinary_graph_is_not_parsed_twice() -> None:
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "imagegen/0123abcd.png", "text": "a/b, c: d"}}}
    assert not suspicious(json.dumps({"prompt": graph}))


COMBO = (["a.png", "sub/b.png"], {"image_upload": True})
SCHEMAS: dict[str, dict[str, Any]] = {
    "LoadImage": {"required": {"image": COMBO}},
    "LoadLatent": {"required": {"latent": (["x.latent"],)}},
    "LoadVideo": {"required": {"file": ("COMBO", {"options": ["v.mp4"], "video_upload": True})}},
    "Load3D": {"required": {"image": ("LOAD_3D", {}), "model_file": (["m.glb"], {"file_upload": True})}},
    "Folder": {"required": {"folder_name": ("STRING", {"default": "x"})}},
    "Text": {"required": {"text": ("STRING", {"multiline": True})}},
    "Paths": {"required": {"path": ("STRING", {})}},
    "Uploaded": {"optional": {"audio": ("STRING", {"audio_upload": True})}},
    "Checkpoint": {"required": {"name": (["..\\linked\\m.safetensors", "m.safetensors"],)}},
    "Any": {"required": {"value": ("STRING", {})}},
    "Dynamic": {"required": {"source": ("COMFY_DYNAMICCOMBO_V3", {"options": []})}},
    "Sampler": {"required": {"latent_image": ("LATENT",), "label": ("STRING", {})}},
}


def found(graph: dict[str, Any]) -> list[tuple[str, str]]:
    """(node, input) of each bad name."""
    return [(bad.node_id, bad.input) for bad in bad_names(graph, SCHEMAS.get, lambda name: name != "Paths")]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node of a graph."""
    return {"class_type": class_type, "inputs": inputs}


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize(
    ("class_type", "input_name"),
    [("LoadImage", "image"), ("LoadLatent", "latent"), ("LoadVideo", "file"), ("Folder", "folder_name")],
)
def test_every_kind_of_file_input_is_checked(class_type: str, input_name: str, name: str) -> None:
    assert found({"7": node(class_type, **{input_name: name})}) == [("7", input_name)]
    wrapped = {input_name: {"__value__": [name]}}
    assert found({"7": node(class_type, **wrapped)}) == [("7", input_name)]


def test_files_in_records_uploads_and_dynamic_inputs_are_checked() -> None:
    assert found({"1": node("Load3D", image={"image": "a.png", "mask": "../m.png"})}) == [("1", "image")]
    assert found({"1": node("Load3D", model_file="../../m.glb")}) == [("1", "model_file")]
    assert found({"1": node("Uploaded", audio="../a.wav")}) == [("1", "audio")]
    assert found({"1": node("Dynamic", **{"source.image": "../a.png"})}) == [("1", "source.image")]
    assert found({"1": node("LoadImage", **{"image": "a.png", "unknown": "../x"})}) == [("1", "unknown")]


def test_a_name_that_comes_from_another_node_is_checked() -> None:
    graph = {
        "1": node("Any", value="../x.png"),
        "2": node("Any", value=["1", 0]),
        "3": node("LoadImage", image=["2", 0]),
    }
    assert found(graph) == [("3", "image")]
    graph["1"] = node("Any", value=["2", 0])  # a circle
    assert found(graph) == []


def test_what_is_no_file_name_may_say_anything() -> None:
    assert found({"1": node("Text", text="a cat, ../.. and /etc/passwd, 100%2e%2e")}) == []
    assert found({"1": node("Paths", path="/data/images")}) == [], "other packs may take paths on purpose"
    assert found({"1": node("Checkpoint", name="..\\linked\\m.safetensors")}) == [], "ComfyUI itself offers it"
    assert found({"1": node("Unknown", image="../x")}) == [], "ComfyUI refuses the node"
    graph = {"1": node("Text", text="../.."), "2": node("Sampler", latent_image=["1", 0], label="/data/out")}
    assert found(graph) == []


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("/comfy/input/a.png", True),
        ("/comfy/input/sub/a.png", True),
        ("/comfy/input", False),
        ("/comfy/inputs/a.png", False),
        ("/comfy/input/../secret.png", False),
        ("/comfy/input//etc/passwd", False),
        ("/comfy/input/%2e%2e/secret.png", False),
        ("/comfy/user/secret.png", False),
    ],
)
def test_a_path_into_comfyuis_own_folders_is_as_good_as_a_name(name: str, good: bool) -> None:
    graph = {"1": node("LoadImage", image=name)}
    folders = ("/comfy/input", "/comfy/output/")
    assert bool(list(bad_names(graph, SCHEMAS.get, bool, folders))) != good


def test_a_list_that_only_looks_like_a_link_is_checked() -> None:
    assert found({"1": node("LoadImage", image={"__value__": ["../a.png", 0]})}) == [("1", "image")]
    assert found({"1": node("LoadImage", image=["../a.png", 0])}) == [("1", "image")]


@pytest.mark.parametrize(
    "graph", [None, [], "x", {"1": None}, {"1": {}}, {"1": {"class_type": 5, "inputs": {}}}, {"": 1}]
)
def test_what_is_no_graph_is_left_to_comfyui(graph: Any) -> None:
    assert list(bad_names(graph, SCHEMAS.get, bool)) == []
