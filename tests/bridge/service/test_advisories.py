"""What is said of a ComfyUI's version."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.service.advisories import ADVISORIES, known_of
from bridge.service.installer import comfyui_version


@pytest.mark.parametrize("version", ["0.3.75", "v0.3.75", "0.9.2", "0.27.9"])
def test_an_old_version_is_named_with_its_advisories(version: str) -> None:
    said = known_of(version)
    assert said
    assert "fixed in 0.28.0" in said
    assert all(name in said for name in ADVISORIES["0.28.0"])


@pytest.mark.parametrize("version", ["0.28.0", "0.28.1", "0.33.0", "1.0"])
def test_of_a_fixed_version_nothing_is_said(version: str) -> None:
    assert known_of(version) is None


@pytest.mark.parametrize(
    ("file", "text", "version"),
    [
        ("comfyui_version.py", '# made by a script\n__version__ = "0.3.75"\n', "0.3.75"),
        ("pyproject.toml", '[project]\nname = "ComfyUI"\nversion = "0.33.0"\n', "0.33.0"),
        ("README.md", "0.3.75", None),
    ],
)
def test_the_version_is_read_from_its_files(tmp_path: Path, file: str, text: str, version: str | None) -> None:
    (tmp_path / file).write_text(text)
    assert comfyui_version(tmp_path) == version
    assert (known_of(version) is None) == (version == "0.33.0")
