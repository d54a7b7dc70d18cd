"""The GPU benchmark's arithmetic, its table, and that it ends by itself where there is no GPU."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a benchmark sets for its process is not for the tests after it."""
    monkeypatch.setattr(gpu, "settle_environment", lambda: None)


@pytest.mark.parametrize(
    ("seconds", "computing", "moved", "rate", "hidden"),
    [
        (10.0, 10.0, 100e9, 20e9, 1.0),  # 5 s of transfers cost nothing
        (15.0, 10.0, 100e9, 20e9, 0.0),  # all of them were waited for
        (12.0, 10.0, 100e9, 20e9, 0.6),
        (9.0, 10.0, 100e9, 20e9, 1.0),  # measured noise is no more than everything
        (30.0, 10.0, 100e9, 20e9, 0.0),
        (10.0, 10.0, 0.0, 20e9, None),
    ],
)
def test_hidden_share(seconds: float, computing: float, moved: float, rate: float, hidden: float | None) -> None:
    assert gpu.hidden_share(seconds, computing, moved, rate) == pytest.approx(hidden)


def test_a_line_of_the_table_shows_what_was_measured() -> None:
    row = gpu.Row("flux-dev", "neurolux, stream", 8.0, 20.0, 7.5, 7.8, 12.25, 400.0, 0.876)
    text = gpu.line(row)
    assert "flux-dev" in text
    assert "8 GB" in text
    for figure in ("20.00 s", "7.50 GB", "7.80 GB planned", "12.25 GB pinned", "20.00 GB/s", "88% hidden"):
        assert figure in text
    assert row.rate_gb_s == 20.0


def test_a_line_says_what_happened_instead() -> None:
    text = gpu.line(gpu.Row("flux-dev", "neurolux, none", None, failure="OutOfMemory: out of memory while sampling"))
    assert "no cap" in text
    assert text.endswith("OutOfMemory: out of memory while sampling")
    assert gpu.Row("flux-dev", "plain", None).rate_gb_s is None


def test_without_a_gpu_it_says_so_and_ends(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 0
    assert "no CUDA GPU here" in capsys.readouterr().out


def test_a_dry_run_goes_through_every_mode_once(
    comfy_modules: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    monkeypatch.setattr(gpu, "start_comfyui", lambda *, cpu: None)  # it runs in this process already
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry-run", "--models", "flux-dev", "--json", str(file)])
    assert gpu.main() == 0
    rows = json.loads(file.read_text())
    ours = [row for row in rows if row["who"].startswith("neurolux")]
    assert [row["cap_gb"] for row in ours] == [None] * len(gpu.MODES) + [gpu.CAPS_GB[0]] * len(gpu.MODES)
    assert {row["who"] for row in ours} == {f"neurolux, {mode}" for mode in gpu.MODES}
    assert all(row["seconds"] > 0 and not row["failure"] for row in ours)
    streamed = {row["who"]: row["moved_gb"] for row in ours}
    assert streamed["neurolux, sequential"] > 0
    assert streamed["neurolux, none"] == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(rows) + 2
    assert all("tiny, fp32: as on the CPU (differs by 0.0000, tolerance 0.02)" in text for text in printed[:2])


def test_a_device_that_computes_otherwise_is_noticed() -> None:
    class Bench:
        """Draws a little lighter on one device."""

        def image(self, device: torch.device, mode: str) -> torch.Tensor:
            return torch.full((1, 2, 2, 3), 0.5 if device.type == "cpu" else 0.53)

    difference = gpu.parity_difference(Bench(), torch.device("meta"), "stream")
    assert difference == pytest.approx(0.03)
    assert "NOT as on the CPU (differs by 0.0300" in gpu.parity_line("flux-dev", "stream", difference)


def test_it_ends_at_its_limit_wherever_it_is(
    comfy_modules: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "start_comfyui", lambda *, cpu: None)
    monkeypatch.setattr(gpu, "compared", lambda subjects: True)

    def endless(self: gpu.Bench, modes: list[str], caps: list[float]) -> Iterator[gpu.Row]:
        yield gpu.Row("flux-dev", "neurolux, none", None, 1.0)
        try:
            threading.Event().wait(60)
        except Exception as error:
            pytest.fail(f"a measurement took the limit for its own failure: {error}")

    monkeypatch.setattr(gpu.Bench, "rows", endless)
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry-run", "--models", "flux-dev", "--limit", "1"])
    assert gpu.main() == 0
    first, last = capsys.readouterr().out.splitlines()
    assert "neurolux, none" in first
    assert "1 s are over; the rest was not measured" in last
