"""docs/CONFIGURATION.md and `--help` name every setting, with the words and the default that the code has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.commands.options import GATEWAY, LIMITS, SERVICE, WORKER
from bridge.settings import (
    Settings,
    SettingsError,
    flag,
    read_setting,
    shown_default,
    variable,
    without_secrets,
    write_setting,
)

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "CONFIGURATION.md").read_text(encoding="utf-8")
NAMES = list(Settings.model_fields)


def row(name: str) -> str:
    """The line of the page about one setting."""
    item = Settings.model_fields[name]
    default = shown_default(item)
    default = f"`{default}`" if item.json_schema_extra == {"shown": None} and default != "none" else default
    return f"| `{variable(name)}` | `{flag(name)}` | {item.description} | {default} |"


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_its_line(name: str) -> None:
    assert row(name) in PAGE.splitlines(), f"docs/CONFIGURATION.md lacks the line\n{row(name)}"


def test_no_line_is_about_a_setting_that_is_gone() -> None:
    told = re.findall(r"^\| `IMAGEGEN_(\w+)` \| `--", PAGE, re.MULTILINE)
    assert sorted(told) == sorted(name.upper() for name in NAMES)


def test_every_variable_that_the_code_reads_is_on_the_page() -> None:
    files = [path for path in (ROOT / "bridge").rglob("*.py") if path.name != "names.py"]  # Streams have such names.
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    read = set(re.findall(r"IMAGEGEN_[A-Z_]+[A-Z]", source))
    assert {name for name in read if name not in PAGE} == set()


@pytest.mark.parametrize(("command", "names"), [("up", SERVICE), ("gateway", GATEWAY), ("worker", WORKER)])
def test_help_says_the_same(command: str, names: tuple[str, ...]) -> None:
    argv = [sys.executable, "-m", "bridge", command, "--help"]
    run = subprocess.run(argv, capture_output=True, text=True, env={"COLUMNS": "10000"}, cwd=ROOT, check=True)
    for name, item in Settings.model_fields.items():
        if name in names:
            line = f"{item.description} ({shown_default(item)}; {variable(name)})"
            assert line in run.stdout
            assert flag(name) + " " in run.stdout or f"{flag(name)}]" in run.stdout
        else:
            assert variable(name) + ")" not in run.stdout


def test_up_and_gateway_have_an_option_for_every_setting() -> None:
    assert set(SERVICE) | {"worker_id"} == set(NAMES)
    others = {"worker_id", "idle_unload_s", "stall_s"}
    assert set(GATEWAY) == set(NAMES) - others - {"comfyui_url", "comfyui_dir", "comfyui_output_dir"}
    assert set(LIMITS) < set(SERVICE)


def test_a_value_written_is_the_value_read() -> None:
    settings = Settings(
        allowed_hosts=("a.example", "b.example"), rate_per_minute=5, job_timeout_s=1.5, log_prompts=True
    )
    for name in NAMES:
        value = getattr(settings, name)
        if value is not None and value != ():
            assert read_setting(name, write_setting(value)) == value, name


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"IMAGEGEN_MAX_STEPS": "many"}, "IMAGEGEN_MAX_STEPS='many' is not a whole number"),
        ({"IMAGEGEN_MAX_STEPS": "0"}, "max_steps 0 is not above 0"),
        ({"IMAGEGEN_BODY_TIMEOUT_S": "soon"}, "IMAGEGEN_BODY_TIMEOUT_S='soon' is not a number"),
        ({"IMAGEGEN_LOG_PROMPTS": "maybe"}, "IMAGEGEN_LOG_PROMPTS='maybe' is not one of 1, 0, true"),
        ({"IMAGEGEN_LOG_FORMAT": "xml"}, "log_format 'xml' is not one of human, json"),
        ({"IMAGEGEN_LOG_LEVEL": "loud"}, "log_level 'loud' is not one of debug, info"),
        ({"IMAGEGEN_RATE_PER_MINUTE": "-1"}, "rate_per_minute -1 is below 0"),
    ],
)
def test_a_value_that_cannot_be_used_is_said_with_its_name(environment: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        Settings.from_environment(environment)


def test_a_wrong_option_is_said_as_it_was_typed() -> None:
    argv = [sys.executable, "-m", "bridge", "gateway", "--max-steps", "many"]
    run = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 1
    assert "--max-steps='many' is not a whole number" in run.stderr


def test_s3_credentials_stay_with_the_service_where_it_uses_them() -> None:
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c"}
    others = {"AWS_REGION": "eu", "HF_TOKEN": "d"}
    assert without_secrets({**keys, **others}) == {**keys, **others}
    used = without_secrets({**keys, **others, "IMAGEGEN_S3_BUCKET": "images"})
    assert used == {**others, "IMAGEGEN_S3_BUCKET": "images"}
