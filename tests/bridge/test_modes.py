"""A saved graph becomes an endpoint: its parameters, their checks, and the values put into both formats."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bridge.errors import UnknownMode
from bridge.modes import BrokenMode, ModeLibrary, read_mode
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
    assert opened["nodes"][2]["widgets_values"] == ["seed", 7, "randomize", ""]
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
    with pytest.raises(UnknownMode, match="no mode is called 'pant'; there is paint"):
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
    (tmp_path / "alone.json").write_text("{}")
    library = ModeLibrary([tmp_path])
    assert library.names() == ["alone", "bad", "good"]
    assert library.get("good").name == "good"
    with pytest.raises(BrokenMode, match="'bad' cannot be read"):
        library.get("bad")
    with pytest.raises(BrokenMode, match="'alone' has no exported graph"):
        library.get("alone")
