"""Every form in which App Mode's data is found in files, and what each becomes."""

from __future__ import annotations

from typing import Any

import pytest
from neurolux.publishing.app_mode import AppMode, read_app_mode
from neurolux.publishing.app_parameters import AppParameter, read_parameters, result_names

ROOT = "6f1c0d0e-0000-4000-8000-000000000001"
INNER = "6f1c0d0e-0000-4000-8000-000000000002"
DEEPER = "6f1c0d0e-0000-4000-8000-000000000003"
SAMPLER = {"id": 6, "type": "KSampler", "title": "Sampler", "inputs": [], "widgets_values": [7, "randomize", 20]}


def link(number: int, slot: int, target: int, target_slot: int) -> dict[str, int]:
    return {"id": number, "origin_id": -10, "origin_slot": slot, "target_id": target, "target_slot": target_slot}


SUBGRAPHS = [
    {
        "id": INNER,
        "inputs": [{"name": "steps", "linkIds": [1, 2]}, {"name": "words", "label": "Prompt"}, {"name": "deep"}],
        "links": [link(1, 0, 3, 0), link(2, 0, 4, 0), link(3, 1, 5, 0), link(4, 2, 8, 0)],
        "nodes": [
            {"id": 3, "type": "KSampler", "inputs": [{"name": "steps", "widget": {"name": "steps"}}]},
            {"id": 4, "type": "KSampler", "inputs": [{"name": "steps", "widget": {"name": "steps"}}]},
            {"id": 5, "type": "CLIPTextEncode", "inputs": [{"name": "text", "widget": {"name": "text"}}]},
            {"id": 7, "type": "EmptyLatentImage", "inputs": [{"name": "width", "widget": {"name": "width"}}]},
            {"id": 8, "type": DEEPER, "inputs": [{"name": "inside", "widget": {"name": "inside"}}]},
        ],
    },
    {
        "id": DEEPER,
        "inputs": [{"name": "inside"}],
        "links": [link(1, 0, 2, 0)],
        "nodes": [{"id": 2, "type": "EmptyImage", "inputs": [{"name": "color", "widget": {"name": "color"}}]}],
    },
]
HOST_SLOTS = [{"name": name, "widget": {"name": name}} for name in ("steps", "words", "deep")]
NODES = [
    SAMPLER,
    {"id": 12, "type": INNER, "title": "Draw", "inputs": HOST_SLOTS},
    {"id": 13, "type": DEEPER, "title": "Older", "inputs": [], "properties": {"proxyWidgets": [["2", "color"]]}},
    {"id": 20, "type": "CLIPTextEncode", "title": "Negative", "inputs": []},
    {"id": 21, "type": "CLIPTextEncode", "title": "Muted", "inputs": [], "mode": 2},
    {"id": 22, "type": "LoadImage", "title": "Start image", "inputs": []},
    {"id": 23, "type": "LoadVideo", "title": "Clip", "inputs": []},
    {"id": 24, "type": "ImageScale", "inputs": []},
    {"id": 25, "type": "Resize", "inputs": []},
    {"id": 40, "type": "CLIPTextEncode", "inputs": [{"widget": {"name": "text"}, "label": "Main Prompt!"}]},
    {"id": 41, "type": "CLIPTextEncode", "title": "Negative", "inputs": []},
]
GRAPH: dict[str, Any] = {
    "6": {
        "class_type": "KSampler",
        "inputs": {"seed": 7, "steps": 20, "cfg": ["20", 0], "model": "b", "model.size": "2K", "denoise": 0},
    },
    "12:3": {"class_type": "KSampler", "inputs": {"steps": 4}},
    "12:4": {"class_type": "KSampler", "inputs": {"steps": 4}},
    "12:5": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
    "12:7": {"class_type": "EmptyLatentImage", "inputs": {"width": 512}},
    "12:8:2": {"class_type": "EmptyImage", "inputs": {"color": 1}},
    "13:2": {"class_type": "EmptyImage", "inputs": {"color": 2}},
    "20": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad"}},
    "22": {"class_type": "LoadImage", "inputs": {"image": "mine.png"}},
    "23": {"class_type": "LoadVideo", "inputs": {"file": "mine.mp4"}},
    "24": {"class_type": "ImageScale", "inputs": {"crop": "disabled"}},
    "25": {"class_type": "Resize", "inputs": {"method": "area"}},
    "30": {"class_type": "SaveImage", "inputs": {"images": ["12", 0]}},
    "40": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}},
    "41": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}},
}
DEFINITIONS: dict[str, Any] = {
    "KSampler": {
        "required": {
            "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}),
            "denoise": ("FLOAT", {"min": 0, "max": 1}),
            "steps": ("INT", {"min": 1, "max": 10000, "step": 1, "tooltip": "How many."}),
            "model": (
                "COMFY_DYNAMICCOMBO_V3",
                {
                    "options": [
                        {"key": "a", "inputs": {"required": {"size": ("STRING", {})}}},
                        {"key": "b", "inputs": {"required": {"size": ("COMBO", {"options": ["1K", "2K"]})}}},
                    ]
                },
            ),
        }
    },
    "CLIPTextEncode": {"required": {"text": ("STRING", {"multiline": True})}},
    "EmptyLatentImage": {"required": {"width": ("INT", {"min": 16, "max": 16384, "step": 8})}},
    "ImageScale": {"required": {"crop": (["disabled", "center"],)}},
    "Resize": {"required": {"method": ("COMBO", {"options": ["area", "bicubic"]})}},
    "LoadImage": {"required": {"image": (["a.png", "b.png"], {"image_upload": True})}},
    "LoadVideo": {"required": {"file": ("COMBO", {"options": [], "video_upload": True})}},
}
WIDGETS = {"6": ["seed", "control_after_generate", "steps"], "12": ["steps", "words", "deep"], "12:3": ["steps"]}


def read(*inputs: Any, outputs: Any = (), nodes: Any = NODES) -> tuple[AppMode, list[AppParameter], list[str]]:
    workflow: dict[str, Any] = {
        "nodes": list(nodes),
        "definitions": {"subgraphs": SUBGRAPHS},
        "extra": {"linearData": {"inputs": list(inputs), "outputs": list(outputs)}},
    }
    app = read_app_mode(workflow, GRAPH)
    assert app is not None
    parameters, warnings = read_parameters(app, workflow, GRAPH, definitions=DEFINITIONS.get, widgets=WIDGETS)
    return app, parameters, [*app.warnings, *warnings]


@pytest.mark.parametrize(
    ("entry", "targets"),
    [
        ([6, "steps"], [("6", "steps")]),
        (["6", "steps"], [("6", "steps")]),
        (["6", "steps", {"height": 110}], [("6", "steps")]),
        ([f"{ROOT}:6:steps", "shown as anything"], [("6", "steps")]),
        ([f"{ROOT}:6:model%2Esize", "size"], [("6", "model.size")]),
        (["6", "model.size"], [("6", "model.size")]),
        ([f"{INNER}:12", "steps"], [("12:3", "steps"), ("12:4", "steps")]),
        ([f"{ROOT}:12:words", "words"], [("12:5", "text")]),
        (["12", "deep"], [("12:8:2", "color")]),
        ([13, "color"], [("13:2", "color")]),
        (["7", "width"], [("12:7", "width")]),
        ([f"{ROOT}:7:width", "width"], [("12:7", "width")]),
        ([f"{ROOT}:12%3A7:width", "width"], [("12:7", "width")]),
    ],
)
def test_each_form_of_an_entry_is_found(entry: Any, targets: list[tuple[str, str]]) -> None:
    _, [parameter], warnings = read(entry)
    assert (list(parameter.targets), warnings) == (targets, [])


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ([99, "steps"], "is of node 99, which is not there any more"),
        ([2, "color"], "is of node 2, which is not there any more"),  # of two instances: which is meant?
        ([6, "gone"], "is no value of KSampler"),
        ([6, "cfg"], "gets its value from another node"),
        ([21, "text"], "is muted, bypassed or gone"),
        ([12, "nothing"], "leads to no widget"),
        ([23, "file"], "is a video, sound or other file"),
        ([6], "has a form that is not known"),
        ({"id": 6}, "has a form that is not known"),
        ([None, "steps"], "has a form that is not known"),
    ],
)
def test_what_leads_nowhere_is_left_out_with_a_warning(entry: Any, told: str) -> None:
    _, parameters, [warning] = read(entry, [20, "text"])
    assert [one.name for one in parameters] == ["text"]
    assert told in warning


@pytest.mark.parametrize(
    "content", [None, [], {}, "x", {"linearData": None}, {"linearData": {"inputs": [], "outputs": []}}]
)
def test_a_workflow_of_which_nobody_made_an_app_has_none(content: Any) -> None:
    assert read_app_mode({"nodes": [], "extra": content}, GRAPH) is None


def test_outputs_are_ids_of_either_type_once_each_and_stale_ones_are_told() -> None:
    app, _, warnings = read([20, "text"], outputs=[30, "30", "31"])
    assert app.outputs == ("30",)
    assert warnings == ["the app's output node 31 is not in the graph that runs"]


def test_types_limits_and_texts_come_from_the_definition() -> None:
    _, parameters, _ = read([6, "seed"], [6, "steps"], [22, "image"], [20, "text", {"description": "Not this."}])
    seed, steps, image, text = (one.record() for one in parameters)
    assert seed["kind"] == "seed"
    assert (steps["kind"], steps["minimum"], steps["maximum"], steps["description"]) == (
        "integer",
        1,
        10000,
        "How many.",
    )
    _, [cfg], _ = read([6, "denoise"])
    assert (cfg.record()["minimum"], cfg.record()["default"]) == (0, 0)  # Not left out, though both are 0.
    assert steps["places"] == (("6", "steps", 2),)
    assert (image["kind"], image["required"], image["default"]) == ("image", True, "")
    assert (text["kind"], text["description"], text["default"]) == ("text", "Not this.", "bad")


def test_an_input_that_another_decides_on_has_the_definition_under_that_choice() -> None:
    _, [size], _ = read([6, "model.size"])
    assert (size.name, size.kind, size.default) == ("model_size", "choice", "2K")
    _, [text], [warning] = read([6, "model"], [20, "text"])
    assert (text.name, "COMFY_DYNAMICCOMBO_V3, which requests cannot set" in warning) == ("text", True)


def test_results_that_are_called_alike_are_told_apart() -> None:
    nodes = {"3": "Save Image", "9:12": "Save Image", "5": "Last"}
    named = {key: {"inputs": {}, "_meta": {"title": title}} for key, title in nodes.items()}
    assert result_names(named) == {"3": "save_image_3", "9:12": "save_image_9_12", "5": "last"}


def test_a_seed_that_is_held_is_a_number_within_what_json_can_carry() -> None:
    held = {**SAMPLER, "widgets_values": [7, "fixed", 20]}
    _, [seed], _ = read([6, "seed"], nodes=[held])
    assert (seed.kind, seed.default, seed.maximum) == ("integer", 7, 2**53 - 1)


def test_names_are_labels_then_configured_then_the_widgets_own_and_never_alike() -> None:
    entries = ([40, "text"], [6, "steps", {"name": "num_inference_steps"}], [12, "words"], [12, "steps"])
    _, parameters, _ = read(*entries, [20, "text"], [41, "text"])
    names = [one.name for one in parameters]
    assert names == ["main_prompt", "num_inference_steps", "prompt", "steps", "negative_20", "negative_41"]


def test_one_widget_chosen_twice_is_one_parameter() -> None:
    _, parameters, _ = read([6, "steps"], [f"{ROOT}:6:steps", "steps"])
    assert len(parameters) == 1


@pytest.mark.parametrize(
    ("entry", "record"),
    [
        ([6, "steps", {"minimum": 4, "maximum": 50}], {"kind": "integer", "minimum": 4, "maximum": 50}),
        ([6, "steps", {"minimum": -4, "maximum": 99999}], {"kind": "integer", "minimum": 1, "maximum": 10000}),
        ([6, "denoise", {"maximum": 0.5, "step": 0.1}], {"kind": "number", "minimum": 0, "maximum": 0.5, "step": 0.1}),
        ([20, "text", {"required": True, "max_length": 9}], {"kind": "text", "required": True, "max_length": 9}),
        ([20, "text", {"accept": ["zip"]}], {"kind": "file", "accept": ("zip",), "default": ""}),
        ([24, "crop", {"choices": ["center"]}], {"kind": "choice", "choices": ("center",)}),
        ([25, "method", {"choices": ["area"]}], {"kind": "choice", "choices": ("area",)}),
    ],
)
def test_an_entry_narrows_what_its_widget_takes(entry: Any, record: dict[str, Any]) -> None:
    _, [parameter], warnings = read(entry)
    assert (parameter.record() | record, warnings) == (parameter.record(), [])


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ([20, "text", {"minimum": 1}], "minimum 1 does not fit a text"),
        ([6, "steps", {"maximum": "many"}], "maximum 'many' does not fit a integer"),
        ([6, "steps", {"maximum": True}], "maximum True does not fit a integer"),
        ([6, "steps", {"max_length": 3}], "max_length 3 does not fit a integer"),
        ([20, "text", {"max_length": "3"}], "max_length '3' does not fit a text"),
        ([20, "text", {"choices": ["a"]}], "choices ['a'] does not fit a text"),
        ([24, "crop", {"choices": "center"}], "choices 'center' does not fit a choice"),
        ([24, "crop", {"choices": ["left"]}], "its choice 'left' is none of the widget's"),
        ([6, "steps", {"accept": ["zip"]}], "accept ['zip'] does not fit a integer"),
    ],
)
def test_what_does_not_fit_its_widget_is_left_out_with_a_warning(entry: Any, told: str) -> None:
    _, parameters, [warning] = read(entry)
    assert not parameters
    assert told in warning
