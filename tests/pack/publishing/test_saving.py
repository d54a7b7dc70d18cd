"""Publishing without the editor: where it saves, what it refuses, and that it replaces files in one step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from neurolux.publishing.saving import MODES_VARIABLE, CannotPublish, modes_folder, publish

from bridge.modes import library as modes
from bridge.settings import Settings

WORKFLOW: dict[str, Any] = {"nodes": [], "links": []}
GRAPH: dict[str, Any] = {
    "1": {"class_type": "NeuroLuxTextParameter", "inputs": {"name": "prompt", "value": "ä"}},
    "9": {"class_type": "NeuroLuxResult", "inputs": {"images": ["8", 0]}},
}


class Classes:
    """A ComfyUI with two classes of nodes."""

    def definition(self, class_type: str) -> dict[str, Any] | None:
        return {
            "EmptyImage": {"required": {"width": ["INT", {"min": 1, "max": 64}]}},
            "LoadImage": {"required": {"image": (["a.png"], {"image_upload": True})}},
            "PrimitiveInt": {"required": {"value": ("INT", {"control_after_generate": True})}},
            "PrimitiveBoolean": {"required": {"value": ("BOOLEAN", {})}},
        }.get(class_type)

    def title(self, class_type: str) -> str:
        return {"LoadImage": "Load Image", "PrimitiveInt": "Int"}.get(class_type, class_type)

    def is_output(self, class_type: str) -> bool:
        return class_type == "PreviewImage"

    def knows(self, class_type: str) -> bool:
        return class_type.startswith("NeuroLux") or self.definition(class_type) is not None


CLASSES = Classes()


def changed(**inputs: Any) -> dict[str, Any]:
    """The graph with other inputs of its parameter."""
    return {**GRAPH, "1": {**GRAPH["1"], "inputs": {**GRAPH["1"]["inputs"], **inputs}}}


def test_without_a_word_from_the_service_it_saves_where_the_service_looks_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("IMAGEGEN_STATE_DIR", raising=False)
    monkeypatch.delenv(MODES_VARIABLE, raising=False)
    assert modes_folder() == Settings.from_environment().workflows
    monkeypatch.setenv("IMAGEGEN_STATE_DIR", str(tmp_path / "other"))
    assert modes_folder() == Settings.from_environment().workflows == tmp_path / "other" / "workflows"
    monkeypatch.setenv(MODES_VARIABLE, str(tmp_path / "modes"))
    assert modes_folder() == tmp_path / "modes"


def test_what_is_published_is_a_mode_and_leaves_no_other_file(tmp_path: Path) -> None:
    folder = tmp_path / "modes"
    publish("mine", WORKFLOW, GRAPH, CLASSES, overwrite=False, folder=folder)
    mode = modes.ModeLibrary([folder]).get("mine")
    assert mode.parameters["prompt"].default == "ä"
    with pytest.raises(CannotPublish, match="mode 'mine' already exists") as refused:
        publish("mine", WORKFLOW, changed(value="b"), CLASSES, overwrite=False, folder=folder)
    assert (refused.value.code, refused.value.status) == ("exists", 409)
    publish("mine", WORKFLOW, changed(value="b"), CLASSES, overwrite=True, folder=folder)
    assert json.loads((folder / "api" / "mine.json").read_text())["1"]["inputs"]["value"] == "b"
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["mine.json", "mine.json"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, []),
        ({"3": "EmptyImage"}, []),
        ({"3": "ADE_Loop"}, ["this ComfyUI has no node class 'ADE_Loop' (node 3), so requests would fail here"]),
        (
            {"3": "ADE_Loop", "4": "EmptyImage", "5:1": "ADE_Loop", "6": "Other"},
            ["this ComfyUI has no node class 'ADE_Loop' (nodes 3, 5:1)", "this ComfyUI has no node class 'Other' ("],
        ),
    ],
)
def test_node_classes_that_this_comfyui_lacks_are_named_before_anything_is_written(
    tmp_path: Path, more: dict[str, str], said: list[str]
) -> None:
    graph = GRAPH | {node_id: {"class_type": name, "inputs": {}} for node_id, name in more.items()}
    plan = publish("mine", WORKFLOW, graph, CLASSES, overwrite=False, dry_run=True, folder=tmp_path / "modes")
    assert len(plan.missing) == len(said)
    for text, start in zip(plan.missing, said, strict=True):
        assert text.startswith(start)
        assert text.endswith("install its node pack and restart ComfyUI, or replace the node")
    assert not (tmp_path / "modes").exists()


@pytest.mark.parametrize(
    ("name", "graph", "said"),
    [
        ("../up", GRAPH, "cannot be a mode's name"),
        ("a/b", GRAPH, "cannot be a mode's name"),
        ("", GRAPH, "cannot be a mode's name"),
        ("mine\n", GRAPH, "cannot be a mode's name"),
        ("mine", {}, "there is nothing to run"),
        ("mine", {"1": GRAPH["1"]}, r"no Result node.* Add one \(NeuroLux > Result, or Save Image\)"),
        ("mine", changed(name="my prompt"), "'my prompt' cannot be a parameter's name"),
        ("mine", changed(name="mode"), "'mode' is a field of every request"),
        ("mine", changed(value=["3", 0]), "its value comes from another node"),
        ("mine", {**GRAPH, "2": GRAPH["1"]}, "nodes 1 and 2 are both parameters named 'prompt'"),
    ],
)
def test_what_could_be_no_endpoint_is_refused_with_what_to_do(
    tmp_path: Path, name: str, graph: dict[str, Any], said: str
) -> None:
    with pytest.raises(CannotPublish, match=said):
        publish(name, WORKFLOW, graph, CLASSES, overwrite=True, folder=tmp_path / "modes")
    assert not (tmp_path / "modes").exists()


def test_a_name_of_ours_is_taken_only_when_that_is_meant(tmp_path: Path) -> None:
    with pytest.raises(CannotPublish, match="comes with NeuroLux; yours would replace it"):
        publish("text-to-image", WORKFLOW, GRAPH, CLASSES, overwrite=False, folder=tmp_path)
    publish("text-to-image", WORKFLOW, GRAPH, CLASSES, overwrite=True, folder=tmp_path)


def test_pack_and_bridge_know_the_same_results_parameters_and_fields() -> None:
    from neurolux.publishing.saving import PARAMETER_CLASS, RESERVED, RESULT_CLASSES

    from bridge.modes import parameters

    assert RESULT_CLASSES == modes.RESULT_CLASSES
    assert RESERVED == parameters.RESERVED
    assert all(PARAMETER_CLASS.fullmatch(name) for name in parameters.PARAMETER_CLASSES)


APP: dict[str, Any] = {
    "nodes": [{"id": 1, "type": "EmptyImage"}],
    "links": [],
    "extra": {"linearData": {"inputs": [[1, "width"]], "outputs": []}},
}
APP_GRAPH: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 8}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}, "_meta": {"title": "The end"}},
}


def test_a_stock_app_is_a_mode_and_what_it_was_replaced_by_is_told(tmp_path: Path) -> None:
    widgets = {"1": ["width", "height"]}
    tried = publish("app", APP, APP_GRAPH, CLASSES, widgets=widgets, overwrite=False, dry_run=True, folder=tmp_path)
    assert (tried.interface.shown, tried.changes, tried.replaces) == (["width: integer"], [], "")
    assert not list(tmp_path.iterdir())
    publish("app", APP, APP_GRAPH, CLASSES, widgets=widgets, overwrite=False, folder=tmp_path)
    mode = modes.ModeLibrary([tmp_path]).get("app")
    assert (mode.parameters["width"].minimum, mode.parameters["width"].maximum) == (1, 64)
    assert (mode.results, mode.result_name("2")) == (("2",), "the_end")
    graph, _ = mode.bind({"width": 48})
    assert graph["1"]["inputs"]["width"] == 48

    slot = {"widget": {"name": "width"}, "label": "W"}
    renamed = {**APP, "nodes": [{"id": 1, "type": "EmptyImage", "inputs": [slot]}]}
    with pytest.raises(CannotPublish, match="requests that use width would be refused"):
        publish("app", renamed, APP_GRAPH, CLASSES, overwrite=False, folder=tmp_path)
    publish("app", renamed, APP_GRAPH, CLASSES, overwrite=True, folder=tmp_path)
    library = modes.ModeLibrary([tmp_path])
    assert list(library.get("app").parameters) == ["w"]
    publish("app", WORKFLOW, GRAPH, CLASSES, overwrite=True, folder=tmp_path)  # No app any more.
    assert list(library.get("app").parameters) == ["prompt"]


NAMED = {
    "1": ("LoadImage", {"image": "a.png"}, "Photo", ["photo: image, required"]),
    "2": ("LoadImage", {"image": "a.png"}, "Load Image", []),
    "3": ("PrimitiveInt", {"value": 3}, "Seed", ["seed: seed"]),
    "4": ("PrimitiveInt", {"value": 3}, "Int", []),
    "5": ("PrimitiveBoolean", {"value": True}, "Smooth edges?", ["smooth_edges: boolean"]),
    "6": ("PrimitiveBoolean", {"value": ["5", 0]}, "Linked", []),
    "7": ("EmptyImage", {"width": 8}, "My image", []),
}


@pytest.mark.parametrize("node_id", NAMED)
def test_without_an_app_values_and_images_with_a_title_are_its_fields(tmp_path: Path, node_id: str) -> None:
    class_type, inputs, title, shown = NAMED[node_id]
    node = {"id": int(node_id), "type": class_type, "widgets_values": [*inputs.values(), "randomize"]}
    graph = {node_id: {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}}
    graph["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    widgets = {node_id: [*inputs, "control_after_generate"]}
    workflow = {"nodes": [node], "links": []}
    tried = publish("named", workflow, graph, CLASSES, widgets=widgets, overwrite=False, dry_run=True, folder=tmp_path)
    assert tried.interface.shown == shown
    app = workflow | {"extra": {"linearData": {"inputs": [], "outputs": ["9"]}}}
    tried = publish("named", app, graph, CLASSES, widgets=widgets, overwrite=False, dry_run=True, folder=tmp_path)
    assert tried.interface.shown == []
