"""One version for the whole project, wherever it is written."""

from __future__ import annotations

import tomllib
from pathlib import Path

import bridge

REPO = Path(__file__).parents[3]


def test_the_pack_and_the_bridge_have_the_same_version() -> None:
    for file in (REPO / "pyproject.toml", REPO / "custom_nodes" / "neurolux" / "pyproject.toml"):
        assert tomllib.loads(file.read_text(encoding="utf-8"))["project"]["version"] == bridge.__version__
