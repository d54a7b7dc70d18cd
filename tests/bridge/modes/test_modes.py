"""A saved graph becomes an endpoint: its parameters, their checks, and the values put into both formats."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from bridge.contract import UnknownMode
from bridge.modes.library import SHIPPED_WORKFLOWS, BrokenMode, ModeLibrary, read_mode
from tests.bridge.graphs import graph, workflow


def write(folder: Path, name: str = "paint") -> Path:
    (folder / "api").mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(workflow()))
    (folder / "api" / f"{name}.json").write_text(json.dumps(graph()))
    return folder / f"{name}.json"


def test_the_graph_alone_describes_the_mode() -> None:
    mode = read_mode("paint", workflow(), graph())
    assert (mode.title, mode.description) == ("Paint a cat", "Draws a cat.")
    schema = mode.json_schema()
    assert schema["required"] == ["prompt"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert isinstance(properties, dict)
    assert properties["strength"] == {
        "description": "",
        "default": 0.5,
        "type": "number",
        "minimum": 0.0,
        "maximum": 1.0,
    }
    assert properties["output_format"]["enum"] == ["png", "jpeg", "webp"]  # pyright: ignore


def test_values_go_into_both_formats_and_leave_the_mode_as_it_was() -> None:
    mode = read_mode("paint", workflow(), graph())
    bound, opened = mode.bind({"prompt": "a dog", "seed": 7})
    assert bound["1"]["inputs"]["value"] == "a dog"
    assert bound["4"]["inputs"]["value"] == 7
    assert opened["nodes"][0]["widgets_values"][:2] == ["prompt", "a dog"]
    assert opened["nodes"][2]["widgets_values"] == ["seed", 7, 0, 2**53 - 1, 1, ""]
    assert mode.graph == graph()
    assert mode.workflow == workflow()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("strength", 1.5, "strength 1.5 is above the maximum of 1"),
        ("strength", "much", "strength must be a number, not 'much'"),
        ("strength", True, "strength must be a number, not True"),
        ("seed", 1.0, "seed must be an integer, not 1.0"),
        ("seed", -1, "seed -1 is below the minimum of 0"),
        ("output_format", "gif", "output_format 'gif' is not one of png, jpeg, webp"),
        ("prompt", 3, "prompt must be a string, not 3"),
    ],
)
def test_a_bad_value_is_named_with_its_remedy(name: str, value: object, said: str) -> None:
    parameter = read_mode("paint", workflow(), graph()).parameters[name]
    assert parameter.problem(value) == said  # pyright: ignore


def test_two_parameters_of_one_name_are_refused() -> None:
    twice = graph()
    twice["2"]["inputs"]["name"] = "prompt"
    with pytest.raises(ValueError, match="nodes 1 and 2 are both parameters named 'prompt'"):
        read_mode("paint", workflow(), twice)


def test_a_graph_without_result_is_refused() -> None:
    endless = graph()
    del endless["9"]
    with pytest.raises(ValueError, match="no result"):
        read_mode("paint", workflow(), endless)


def test_an_unknown_mode_is_answered_with_those_that_exist(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UnknownMode, match="no mode is called 'pant'; available: paint"):
        ModeLibrary([tmp_path]).get("pant")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path)
    library = ModeLibrary([tmp_path])
    assert library.get("paint").parameters["strength"].default == 0.5
    changed = graph()
    changed["2"]["inputs"]["value"] = 0.25
    (tmp_path / "api" / "paint.json").write_text(json.dumps(changed))
    os.utime(path)
    assert library.get("paint").parameters["strength"].default == 0.25


def test_a_users_mode_hides_a_shipped_one(tmp_path: Path) -> None:
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    shipped.mkdir()
    own.mkdir()
    write(shipped)
    path = write(own)
    path.write_text(path.read_text().replace("Paint a cat", "My cat"))
    assert ModeLibrary([shipped, own]).get("paint").title == "My cat"


def test_a_broken_file_is_named_and_the_others_still_work(tmp_path: Path) -> None:
    write(tmp_path, "good")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "api" / "bad.json").write_text("{}")
    (tmp_path / "alone.json").write_text(json.dumps(workflow()))
    library = ModeLibrary([tmp_path])
    assert library.names() == ["alone", "bad", "good"]
    assert library.get("good").name == "good"
    with pytest.raises(BrokenMode, match="'bad' cannot be read"):
        library.get("bad")
    with pytest.raises(BrokenMode, match=r"'alone' has no exported graph: .*choose File > Publish as mode"):
        library.get("alone")
    for content in ("{}", "[]", "3", '{"1": {}}', "[" * 100_000):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(BrokenMode, match="'bad' cannot be read"):
            library.get("bad")


def test_a_graph_in_api_format_alone_is_a_mode(tmp_path: Path) -> None:
    path = tmp_path / "alone.json"
    path.write_text(json.dumps(graph()))
    mode = ModeLibrary([tmp_path]).get("alone")
    assert (mode.title, list(mode.parameters)) == ("alone", ["prompt", "strength", "output_format", "seed"])
    bound, opened = mode.bind({"prompt": "a dog"})
    assert (bound["1"]["inputs"]["value"], opened) == ("a dog", {})


def test_a_parameter_is_not_called_like_a_field_of_every_request() -> None:
    bad = graph()
    bad["2"]["inputs"]["name"] = "job_id"
    with pytest.raises(ValueError, match="'job_id' is a field of every request"):
        read_mode("paint", workflow(), bad)


def test_results_are_in_the_order_of_their_nodes_under_their_own_names() -> None:
    several = graph()
    several["10"] = {"class_type": "NeuroLuxFileResult", "inputs": {"name": "lora"}}
    several["9"]["inputs"]["name"] = "images"
    several["12:3"] = {"class_type": "NeuroLuxVideoResult", "inputs": {"name": ["1", 0]}}
    mode = read_mode("paint", workflow(), dict(reversed(several.items())))
    assert [(node, mode.result_name(node)) for node in mode.results] == [
        ("9", "images"),
        ("10", "lora"),
        ("12:3", "12:3"),
    ]


CHOICE = {"class_type": "NeuroLuxChoiceParameter", "inputs": {"name": "lora", "value": "a.safetensors", "choices": ""}}
LOADER = {"class_type": "LoraLoaderModelOnly", "inputs": {"lora_name": ["20", 0], "strength_model": 1.0}}


def test_a_choice_without_options_takes_what_comfyui_offers_where_it_leads() -> None:
    mode = read_mode("paint", workflow(), {**graph(), "20": CHOICE, "21": LOADER})
    assert mode.links() == {"lora": [("LoraLoaderModelOnly", "lora_name")]}
    assert mode.parameters["lora"].problem("anything") is None
    offering = mode.offering({"lora": ("a.safetensors", "b.safetensors")}).parameters["lora"]
    assert offering.json_schema()["enum"] == ["a.safetensors", "b.safetensors"]
    assert offering.problem("c") == "lora 'c' is not one of a.safetensors, b.safetensors"
    nothing = mode.offering({"lora": ()}).parameters["lora"]
    assert "enum" not in nothing.json_schema()
    assert nothing.problem("c") == ("lora 'c': ComfyUI offers no options; put a file into the folder that it reads")


def test_only_a_model_of_the_pack_is_looked_for_among_its_models() -> None:
    named_model = {**CHOICE, "inputs": {**CHOICE["inputs"], "name": "model"}}
    own = {"class_type": "NeuroLuxLoadModel", "inputs": {"model": ["20", 0]}}
    stock = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": ["20", 0]}}
    assert read_mode("paint", workflow(), {**graph(), "20": named_model, "21": own}).takes_model
    mode = read_mode("paint", workflow(), {**graph(), "20": named_model, "21": stock})
    assert not mode.takes_model
    assert mode.links() == {"model": [("CheckpointLoaderSimple", "ckpt_name")]}


def test_the_index_of_modes_lists_those_that_come_with_the_project() -> None:
    page = (SHIPPED_WORKFLOWS.parent / "docs" / "MODES.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[([\w-]+)\]\(([\w./-]+)\) \|", page, re.MULTILINE)
    assert sorted(name for name, _ in rows) == ModeLibrary([SHIPPED_WORKFLOWS]).names()
