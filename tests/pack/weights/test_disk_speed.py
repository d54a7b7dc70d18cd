"""The speed of the disk with the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from neurolux.weights import disk_speed
from neurolux.weights.download.sources import ResolvedFiles


def test_it_is_measured_once_for_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_speed, "LEAST_BYTES", 1 << 20)
    monkeypatch.setattr(disk_speed, "_rates", {})
    (tmp_path / "config.json").write_text("{}")
    large = tmp_path / "unet" / "weights.safetensors"
    large.parent.mkdir()
    large.write_bytes(bytes(8 << 20))
    rate = disk_speed.rate_of_files(ResolvedFiles(pipeline=tmp_path))
    assert rate is not None
    assert rate > 0
    monkeypatch.setattr(disk_speed, "_measured", lambda path: pytest.fail("it was measured again"))
    assert disk_speed.rate_of_files(ResolvedFiles(checkpoint=large)) == rate


@pytest.mark.parametrize("files", [None, ResolvedFiles()])
def test_without_files_it_is_unknown(files: ResolvedFiles | None) -> None:
    assert disk_speed.rate_of_files(files) is None


def test_a_small_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(bytes(1 << 20))
    assert disk_speed.read_rate(tmp_path / "weights.safetensors") is None
    assert disk_speed.read_rate(tmp_path / "gone") is None
