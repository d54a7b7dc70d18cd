"""The fields of the modes that ship with the project are an interface: programs depend on them, whatever the graphs do.

`public_fields.json` holds them in the order in which forms and documentation show them. Change it only to add a field,
or with a reason that CHANGELOG.md gives.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.modes.library import SHIPPED_WORKFLOWS, ModeLibrary
from bridge.modes.schema import request_schema

FIELDS = json.loads((Path(__file__).parent / "public_fields.json").read_bytes())
LIBRARY = ModeLibrary([SHIPPED_WORKFLOWS])


def test_no_mode_came_or_went() -> None:
    assert LIBRARY.names() == sorted(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_its_fields_are_as_they_were(name: str) -> None:
    mode, known = LIBRARY.get(name), FIELDS[name]
    assert (mode.title, mode.seeds, [mode.result_name(each) for each in mode.results]) == (
        known["title"],
        known["random"],
        known["results"],
    )
    schema = request_schema(mode)
    found = {field: dict(schema["properties"][field]) for field in mode.parameters}
    assert all(described.pop("description") for described in found.values())
    assert list(found) == list(known["fields"])
    assert found == known["fields"]
    assert schema["required"] == known["required"]
