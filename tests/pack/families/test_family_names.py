"""A family's name stands in its own module, in the catalog and in tests: everything else asks the family's record."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from neurolux.families.registry import families

REPO = Path(__file__).parents[3]
ROOMS = ("custom_nodes/neurolux", "bridge", "overlay")
INSIDE = "custom_nodes/neurolux/families/"


def family_names() -> re.Pattern[str]:
    """A family's name as the whole of a string, or as a part of an identifier."""
    names = "|".join(map(re.escape, families()))
    return re.compile(rf"[\"'](?:{names})[\"']|(?:^|_)(?:{names})(?:_|$)", re.IGNORECASE)


def named(path: Path) -> Iterator[str]:
    """Where ``path`` names a family in code; comments and sentences may."""
    wanted = family_names()
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(io.StringIO(file.read()).readline))
    for token in tokens:
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", token.string)
        quoted = token.type == tokenize.STRING and wanted.fullmatch(token.string)
        if quoted or (token.type == tokenize.NAME and wanted.search(words)):
            yield f"{path.relative_to(REPO)}:{token.start[0]}: {token.string}"


@pytest.mark.parametrize("room", ROOMS)
def test_no_code_outside_of_families_names_a_family(room: str) -> None:
    files = [path for path in sorted((REPO / room).rglob("*.py")) if INSIDE not in path.as_posix()]
    assert [place for path in files for place in named(path)] == []
