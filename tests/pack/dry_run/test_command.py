"""``imagegen plan --dry-run``: which plans it executes, and what it says of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.pack.library.test_plan_command import imagegen

pytestmark = pytest.mark.usefixtures("comfy_modules")
GB = 10**9


def test_a_plan_that_was_kept_is_a_line_and_exit_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    from neurolux.dry_run.command import HELD, report
    from neurolux.dry_run.records import Case

    assert report([Case("sd15", 4 * GB, 16 * GB, task="prompt")], as_json=True) == HELD
    (line,) = json.loads(capsys.readouterr().out)
    assert (line["model"], line["card"], line["offload"], line["result"]) == ("sd15", "4 GB", "none", "held")


def test_a_plan_that_was_not_kept_says_how() -> None:
    from neurolux.dry_run.records import Case, Outcome

    from tests.pack.plans import card, plan

    outcome = Outcome(Case("sd15", 4 * GB, 16 * GB), plan("sd15", card(4, 14)), card=9 * GB, ram=GB, left_in_ram=GB)
    assert list(outcome.problems()) == [
        "9.0 GB on the card, planned were 3.1 GB",
        "after the drop 1.0 GB are left",
    ]


@pytest.mark.parametrize("options", [[], ["--every-mode"], ["--every-task"]], ids=str)
def test_the_matrix_has_every_model_and_no_plan_twice(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from neurolux.dry_run import command
    from neurolux.dry_run.architectures import known_architectures
    from neurolux.dry_run.command import make_parser, matrix

    monkeypatch.setattr(command, "CARDS_GB", (8, 80))  # planning for all of them takes seconds
    monkeypatch.setattr(command, "RAMS_GB", (16, 64))
    models = set(known_architectures())
    cases = list(matrix(make_parser().parse_args(["--comfyui", ".", "--matrix", *options])))
    assert {case.model for case in cases} == models
    assert len(set(cases)) == len(cases)
    if options == ["--every-task"]:
        assert {case.model for case in cases if case.task == "video"} == {"sd15", "sdxl-base"} | {
            name for name in models if name.startswith("sdxl")
        }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "sd15", "--steps", "4"], "--dry-run takes no --steps here"),
        (["--all-cards", "--vram", "8GB"], "--dry-run takes no --vram here; it takes --model, --offload"),
    ],
)
def test_an_option_without_an_effect_is_refused(options: list[str], message: str) -> None:
    found: Any = imagegen("--dry-run", *options)
    assert found.returncode != 0
    assert message in found.stderr
