"""The pack's version, read from its ``pyproject.toml``, the only place that defines it."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path


@cache
def pack_version() -> str:
    """The version as X.Y.Z."""
    project = tomllib.loads((Path(__file__).parent / "pyproject.toml").read_text(encoding="utf-8"))
    return project["project"]["version"]
