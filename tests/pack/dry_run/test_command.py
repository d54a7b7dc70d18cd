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


def test_a_plan_that_cannot_be_executed_is_a_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurolux.dry_run import run
    from neurolux.dry_run.command import BROKEN, report
    from neurolux.dry_run.records import Case

    def fails(case: Case) -> None:
        raise ValueError("no such step")

    monkeypatch.setattr(run, "run_case", fails)
    assert report([Case("sd15", 4 * GB, 16 * GB)], as_json=True) == BROKEN
    (line,) = json.loads(capsys.readouterr().out)
    assert (line["model"], line["offload"], line["result"]) == ("sd15", "auto", "ValueError: no such step")


@pytest.mark.parametrize(
    ("given", "vram", "capability", "task"),
    [
        (["--model", "sd15", "--vram", "4GB"], 4 * GB, (8, 6), "text-to-image"),
        (["--model", "sd15", "--card", "RTX 2060"], 6 * 2**30, (7, 5), "text-to-image"),
        (["--model", "sd15", "--card", "RTX 5090", "--vram", "8GB"], 8 * GB, (12, 0), "text-to-image"),
        (["--model", "flux-fill-dev", "--vram", "24GB"], 24 * GB, (8, 6), "fill"),
    ],
)
def test_a_case_is_what_the_options_describe(
    given: list[str], vram: int, capability: tuple[int, int], task: str
) -> None:
    from neurolux.dry_run.command import make_parser, one

    case = one(make_parser().parse_args(["--comfyui", ".", "--ram", "32GB", *given]))
    assert (case.vram, case.capability, case.task) == (vram, capability, task)


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
    tasks = {task: {case.model for case in cases if case.task == task} for task in {case.task for case in cases}}
    if options == ["--every-task"]:
        sdxl = {name for name in models if name.startswith("sdxl")}
        assert tasks["video"] == {"sd15"} | sdxl
        qwen = {name for name in models if name.startswith("qwen-image")}
        assert tasks["controlnet"] == sdxl | qwen | {"flux-schnell", "flux-dev", "flux-krea-dev"}
        from_prompts = {name for name in models if "klein" in name or name.startswith("krea")}
        assert tasks["image-to-image"] == models - {"flux-fill-dev", "flux-kontext-dev", "sd15"} - from_prompts
    assert tasks["fill"] == {"flux-fill-dev"}
    assert tasks["text-to-image"] == models - {"flux-fill-dev"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "sd15", "--steps", "4"], "--dry-run takes no --steps here"),
        (["--all-cards", "--vram", "8GB"], "--dry-run takes no --vram here; it takes --model, --offload"),
        (["--model", "sd15", "--every-mode"], "--every-mode and --every-task go with --all-cards"),
        (["--all-cards", "--sweep", "9"], "--sweep goes with --model, --vram (or --card) and --ram"),
    ],
)
def test_an_option_without_an_effect_is_refused(options: list[str], message: str) -> None:
    found: Any = imagegen("--dry-run", *options)
    assert found.returncode != 0
    assert message in found.stderr
