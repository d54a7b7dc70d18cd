"""The shipped starter model draws what its card says: its measured score is measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.evaluate import evaluate

FOLDER = Path(__file__).parents[2] / "custom_nodes" / "neurolux" / "models" / "starter"
LARGEST_FOLDER_BYTES = 25_000_000
FLOOR = 0.9
FLOOR_BY_KIND = {"subject": 0.97, "shape": 0.85, "count": 0.6, "place": 0.5}
"""What the card calls sure or usual."""
MARGIN = 0.05
"""Other processors round otherwise, and a prompt that was just right may come out just wrong."""


def recorded() -> dict[str, object]:
    return json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))


def test_the_recorded_score_is_what_the_weights_give() -> None:
    told = recorded()
    figures, verdicts, _ = evaluate(FOLDER)
    assert len(verdicts) == told["prompts"] >= 50  # pyright: ignore[reportOperatorIssue]
    for name in ("score", "items_nearest", "items_in_nearest_five", "grounds_right"):
        assert figures[name] == pytest.approx(told[name], abs=MARGIN), name
    assert figures["score"] >= FLOOR  # pyright: ignore[reportOperatorIssue]
    for kind, floor in FLOOR_BY_KIND.items():
        assert figures["by_kind"][kind] >= floor, kind  # pyright: ignore[reportIndexIssue]


def test_the_card_shows_the_recorded_score() -> None:
    told = recorded()
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert str(told["score"]) in card or f"{float(told['score']):.0%}" in card  # pyright: ignore[reportArgumentType]


def test_the_folder_is_small_and_holds_no_pickle() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST_FOLDER_BYTES
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".png"}
