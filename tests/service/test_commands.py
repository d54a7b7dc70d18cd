"""The `imagegen` command and the check script, against the running service."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.service.conftest import DEFAULT_MODEL, Service

SCRIPT = Path(__file__).parents[2] / "scripts" / "test_image_gen.py"


def test_generate_saves_the_image_and_never_overwrites(imagegen, tmp_path: Path) -> None:
    arguments = ("generate", "A cute cat!", "--size", "128x96", "--steps", "2", "--seed", "5")
    first, again = imagegen(*arguments), imagegen(*arguments, "--quiet")
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() == f"a-cute-cat-{DEFAULT_MODEL}-5.png"
    assert again.stdout.strip() == f"a-cute-cat-{DEFAULT_MODEL}-5 (2).png"
    assert again.stderr == ""
    assert "128x96, seed 5, 2 steps" in first.stderr
    assert "generating: 2/2\n" in first.stderr
    assert "\r" not in first.stderr
    assert not re.search(r"\d{6}|\de\+\d", first.stderr), "sizes are told in MB"
    with Image.open(tmp_path / first.stdout.strip()) as image:
        assert image.size == (128, 96)


def test_generate_takes_format_and_place_from_out(imagegen, tmp_path: Path) -> None:
    done = imagegen("generate", "a cat", "--size", "128", "--n", "2", "--out", "deep/er/cat.webp", "--quiet")
    assert done.returncode == 0, done.stderr
    for name in ("cat-1.webp", "cat-2.webp"):
        with Image.open(tmp_path / "deep" / "er" / name) as image:
            assert image.format == "WEBP"


def test_demo_draws_with_the_starter_on_the_service_that_runs(imagegen, tmp_path: Path) -> None:
    done = imagegen("demo", "--prompt", "cat, red background", "--out", "images/")
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "images").glob("cat-red-background-starter-*.png")
    assert str(path.relative_to(tmp_path)) in done.stdout
    assert "starting the service" not in done.stdout


def test_errors_are_lines_and_exit_code_1(imagegen) -> None:
    wrong = imagegen("generate", "a cat", "--size", "100", "--seed", "-3")
    assert wrong.returncode == 1
    assert "width 100 is not a multiple of 16" in wrong.stderr
    assert "seed -3" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    unknown = imagegen("load", "nope")
    assert unknown.returncode == 1
    assert "no model is called 'nope'" in unknown.stderr


def test_models_and_load_tell_what_is_there(imagegen) -> None:
    assert imagegen("load", "tiny-sdxl").stdout.startswith("tiny-sdxl loaded in ")
    listed = imagegen("models").stdout
    rows = {line.split()[0]: line for line in listed.splitlines() if line}
    assert f"{DEFAULT_MODEL}*" in rows
    assert "loaded" in rows["tiny-sdxl"]
    assert "missing" in rows["flux-dev"]
    assert "Non-Commercial" in rows["flux-dev"]


def test_without_a_service_the_remedy_is_said(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "bridge",
        "generate",
        "a cat",
        "--url",
        "http://127.0.0.1:9",
        "--quiet",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "imagegen: no image generation service answers at http://127.0.0.1:9; start one with 'imagegen up'\n"
    )


def test_the_check_script_checks_the_service(service: Service, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "A cute cat on a windowsill", "--url", service.url, "--out", str(tmp_path)]
    done = subprocess.run([*command, "--size", "128x96"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the image is 128x96" in done.stdout
    assert "FAIL" not in done.stdout
    assert len(list(tmp_path.glob("*.png"))) == 1
