"""Whatever lies in a modes folder: the other modes stay, and the bad one is named with its fault."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.modes.library import BrokenMode, ModeLibrary
from tests.bridge.graphs import graph, workflow
from tests.bridge.house import House, write_mode

Put = Callable[[Path], Any]


def text(content: str | bytes) -> Put:
    """A file with this content."""
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def changed(**values: Any) -> Put:
    """An editor's graph with other values."""
    return text(json.dumps({**workflow(), **values}))


def api(**nodes: Any) -> Put:
    """A graph in API format with other or more nodes."""
    return text(json.dumps({**graph(), **nodes}))


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


KINDS: dict[str, Put] = {
    "brackets": text("[" * 100_000),
    "objects": text('{"a":' * 100_000),
    "deep": text(json.dumps({**graph(), "99": {"class_type": "x", "inputs": {"a": nested(300)}}})),
    "a pipe": os.mkfifo,
    "a socket": make_socket,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a dead link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to its folder": lambda path: path.symlink_to("."),
    "empty": text(""),
    "half": text(json.dumps(graph())[:-20]),
    "not UTF-8": text(b'{"\xff": 1}'),
    "null": text("null"),
    "a number": text("1"),
    "a list": text("[]"),
    "no nodes": text("{}"),
    "not a number": text(json.dumps({**graph(), "99": {"class_type": "x", "inputs": {"a": float("nan")}}})),
    "half a character": api(**{"99": {"class_type": "x", "inputs": {"a": "\ud800"}}}),
    "a huge number": text('{"1": {"class_type": "x", "inputs": {"a": ' + "9" * 10_000 + "}}}"),
    "inputs that are a list": api(**{"99": {"class_type": "x", "inputs": []}}),
    "inputs that are null": api(**{"99": {"class_type": "NeuroLuxTextParameter", "inputs": None}}),
    "a class that is a list": api(**{"99": {"class_type": ["x"], "inputs": {}}}),
    "a parameter without a name": api(**{"99": {"class_type": "NeuroLuxTextParameter", "inputs": {}}}),
    "a parameter with numbers for texts": api(
        **{"99": {"class_type": "NeuroLuxChoiceParameter", "inputs": {"name": 5, "value": [], "choices": 7}}}
    ),
    "no result": text(json.dumps({"1": {"class_type": "x", "inputs": {}}})),
    "an editor's graph without its twin": changed(),
    "an editor's graph with nodes of another form": changed(nodes=[1, None]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_is_named_and_the_other_modes_stay(tmp_path: Path, kind: str) -> None:
    write_mode(tmp_path, "paint")
    library = ModeLibrary([tmp_path])
    before = library.version()
    KINDS[kind](tmp_path / "bad.json")
    assert library.names() == ["bad", "paint"]
    assert library.get("paint").title == "Paint a cat"
    with pytest.raises(BrokenMode, match="'bad'"):
        library.get("bad")
    assert library.version() != before


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_twin_is_named_and_the_other_modes_stay(tmp_path: Path, kind: str) -> None:
    write_mode(tmp_path, "paint")
    twin = write_mode(tmp_path, "bad").parent / "api" / "bad.json"
    twin.unlink()
    KINDS[kind](twin)
    library = ModeLibrary([tmp_path])
    assert library.version()
    assert library.names() == ["bad", "paint"]
    assert library.get("paint").title == "Paint a cat"
    with pytest.raises(BrokenMode, match="'bad'"):
        library.get("bad")


@pytest.mark.parametrize("put", [text("x"), os.mkfifo, lambda path: path.symlink_to(path.name)])
def test_a_bad_api_folder_breaks_no_mode_that_needs_none(tmp_path: Path, put: Put) -> None:
    put(tmp_path / "api")
    (tmp_path / "whole.json").write_text(json.dumps(graph()))
    library = ModeLibrary([tmp_path])
    assert library.version()
    assert library.get("whole").parameters


@pytest.mark.parametrize("put", [text("x"), os.mkfifo, lambda path: path.symlink_to(path.name), lambda path: None])
def test_a_bad_modes_folder_hides_no_other(tmp_path: Path, put: Put) -> None:
    write_mode(tmp_path / "shipped", "paint")
    put(tmp_path / "own")
    library = ModeLibrary([tmp_path / "shipped", tmp_path / "own"])
    assert library.names() == ["paint"]
    assert library.get("paint").parameters


NAMES = [b"caf\xe9", b"two\nlines", b"\x1b[31mred\x07", b"n" * 240, "größe".encode(), b"a b"]


async def test_the_list_of_modes_survives_any_file_and_any_name(house: House, tmp_path: Path) -> None:
    folder = tmp_path / "workflows"
    write_mode(folder, "paint")
    for number, put in enumerate(KINDS.values()):
        put(folder / f"bad{number}.json")
    for name in NAMES:
        (folder / (os.fsdecode(name) + ".json")).write_text("{")
    gateway = await house.gateway()
    answer = await gateway.get("/v1/modes")
    assert answer.status == 200
    details = {mode["name"]: mode for mode in (await answer.json())["details"]}
    assert not details["paint"].get("error")
    bad = {f"bad{number}" for number in range(len(KINDS))} | {name.decode("utf-8", "replace") for name in NAMES}
    assert bad <= set(details)
    assert all(details[name]["error"]["code"] == "broken_mode" for name in bad)
    document = await (await gateway.get("/openapi.json")).json()
    assert "/v1/modes/paint" in document["paths"]
    assert (await gateway.get("/readyz")).status in (200, 503)
