"""`imagegen plan`: any model on any card, without a service; and the page that shows what it prints."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from neurolux.catalog.reading import read_catalog
from neurolux.library import plan_command
from neurolux.library.plan_query import PlanQuery, machine_for, parse_bytes, parse_query

from bridge.commands.main import main
from bridge.commands.plan import nvidia_gpu

REPO = Path(__file__).parents[3]
PAGE = REPO / "docs" / "MEMORY.md"
GB = 10**9


def imagegen(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, but for the process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["plan", *arguments])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def printed_examples() -> list[tuple[str, str]]:
    """The commands of the page, and what it says that they print."""
    blocks = re.findall(
        r"^```\n\$ imagegen plan ([^\n]*)\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return [(command, text.strip()) for command, text in blocks]


def test_a_plan_is_a_table_with_its_reasons() -> None:
    done = imagegen("--model", "flux-dev", "--vram", "8GB", "--ram", "64GB", "--size", "1024")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("FLUX.1 dev: 1024x1024, 28 steps\non a card with 7.5 GB free, 62.0 GB of RAM free\n")
    for line in (
        r"transformer +bf16 +bf16 +streamed, \d+ of 57 blocks stay +23.8 GB",
        r"fits +yes",
        r"offload +stream",
    ):
        assert re.search(line, done.stdout), line
    assert "- offload stream: " in done.stdout


def test_json_is_for_programs_and_the_exit_code_says_whether_it_fits() -> None:
    done = imagegen(
        "--model", "flux-dev", "--vram", "8GB", "--ram", "64GB", "--precision", "bf16", "--offload", "none", "--json"
    )
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["plan"]["fits"] is False
    assert answer["machine"]["device"] == "cuda"
    assert (answer["plan"]["precision"], answer["plan"]["offload"]) == ("bf16", "none")


def test_all_cards_has_a_line_for_each_and_for_cpus() -> None:
    done = imagegen("--all-cards", "--model", "sdxl-lightning", "--size", "768")
    assert done.returncode == 0, done.stderr
    for label in ("4 GB ", "6 GB ", "8 GB ", "12 GB ", "16 GB ", "24 GB ", "80 GB ", "CPU, 8 GB RAM", "CPU, 64 GB RAM"):
        assert f"\n{label}" in done.stdout
    assert len(json.loads(imagegen("--all-cards", "--json").stdout)) == 13 * len(read_catalog().models)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say which model: imagegen plan --model flux-dev"),
        (("--model", "flux"), "unknown model 'flux'; known are starter, flux-schnell, flux-dev, sdxl-lightning"),
        (("--model", "flux-dev", "--vram", "8 apples"), "vram '8 apples' is not a size; write 8GB, 7.5GB or 8GiB"),
        (("--model", "flux-dev", "--size", "10x"), "size '10x' is not a size in pixels; write 1024 or 1024x768"),
        (("--model", "flux-dev", "--size", "1000"), "width 1000 is not a multiple of 16; nearest are 992 and 1008"),
        (("--model", "sdxl-lightning", "--steps", "3"), "num_inference_steps 3 is not available"),
        (("--model", "flux-dev", "--offload", "disc"), "unknown offload 'disc'; use auto, none, model, stream"),
        (("--model", "flux-dev", "--card", "RTX 9"), "card 'RTX 9' is not known; known are GTX 1080 Ti, GTX 1660"),
        (("--model", "flux-dev", "--disk", "fast"), "disk 'fast' is not a size"),
        (("--model", "flux-dev", "--frames", "16"), "flux-dev, a flux model, makes no videos"),
        (("--model", "flux-dev", "--every-mode"), "--every-mode and --every-task go with --dry-run --all-cards"),
        (("--model", "flux-dev", "--sweep", "1"), "--sweep goes with --dry-run"),
        (("--model", "flux-dev", "--bf16", "maybe"), "bf16 'maybe' is neither true nor false"),
    ],
)
def test_a_wrong_question_gets_one_line_with_the_remedy(arguments: tuple[str, ...], message: str) -> None:
    done = imagegen(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"imagegen: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * GB), ("8 gb", 8 * GB), ("7.5GB", 7_500_000_000), ("8GiB", 8 * 2**30), ("8g", 8 * GB), ("0", 0),
     ("500MB", 500_000_000), ("1TiB", 2**40), ("8589934592", 8 * 2**30), ("512 KiB", 2**19)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes("vram", text) == size


@pytest.mark.parametrize(
    ("gpu", "device", "vram", "bf16"),
    [("7940, 8.6", "cuda", 7940 * 2**20, True), ("7940, 7.5", "cuda", 7940 * 2**20, False), ("", "cpu", 0, True),
     ("[N/A], 8.6", "cpu", 0, True), ("No devices were found", "cpu", 0, True)],
)  # fmt: skip
def test_this_machine_has_the_gpu_that_nvidia_smi_names(gpu: str, device: str, vram: int, bf16: bool) -> None:
    here = plan_command.this_machine(gpu)
    assert (here.device, here.free_vram, here.bf16) == (device, vram, bf16)


@pytest.mark.parametrize(
    ("gpu", "card", "rate", "known"),
    [
        ("11000, 8.6, 4, 16, NVIDIA GeForce RTX 3060", "RTX 3060", 24.96e9, "card"),
        ("11000, 8.6, 3, 8, NVIDIA GeForce RTX 3060", "RTX 3060", 6.24e9, "card"),  # a narrow, old slot
        ("11000, 8.6, [N/A], [N/A], NVIDIA GeForce RTX 3060", "RTX 3060", 24.96e9, "card"),
        ("7000, 8.9, 4, 8, NVIDIA RTX 4060 Laptop GPU", "NVIDIA RTX 4060 Laptop GPU", 12.48e9, "assumed"),
    ],
)  # fmt: skip
def test_this_machine_s_gpu_is_looked_up_and_its_slot_counts(gpu: str, card: str, rate: float, known: str) -> None:
    here = plan_command.this_machine(gpu)
    assert (here.card, here.rates_from) == (card, known)
    assert here.transfer_rate == pytest.approx(rate)


def test_a_card_is_named_instead_of_described() -> None:
    done = imagegen(
        "--model", "flux-dev", "--card", "GeForce RTX 2080 Ti", "--ram", "16GB", "--disk", "500MB", "--json"
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["machine"]["card"] == "RTX 2080 Ti"
    assert answer["machine"]["bf16"] is False
    assert answer["machine"]["free_vram"] == 11 * 2**30 - 500_000_000
    assert "weights are read at 0.5 GB/s (as given)" in answer["plan"]["reasons"]
    smaller = json.loads(
        imagegen("--model", "sd15", "--card", "rtx 3060", "--vram", "8GB", "--ram", "16GB", "--json").stdout
    )
    assert smaller["machine"]["free_vram"] == 7_500_000_000


def test_a_video_is_planned_with_its_motion_adapter() -> None:
    image, video = (
        json.loads(imagegen("--model", "sd15", "--vram", "24GB", "--ram", "32GB", "--json", *more).stdout)["plan"]
        for more in ((), ("--frames", "16"))
    )
    assert video["components"]["motion"]["bytes"] == 908_000_000
    assert video["peak_vram"] > image["peak_vram"] + 908_000_000


def test_the_command_asks_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_gpu() == ""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 7940, 8.6\necho 24000, 8.9\n")
    program.chmod(0o755)
    assert nvidia_gpu() == "7940, 8.6"


def test_what_is_not_asked_is_this_machine() -> None:
    here = plan_command.this_machine("")
    assert here.free_ram > GB
    assert machine_for(PlanQuery(), here) == here
    card = machine_for(parse_query({"vram": "8GB", "bf16": "no"}), here)
    assert (card.device, card.free_ram, card.bf16) == ("cuda", here.free_ram, False)
    assert 7 * GB < card.free_vram < 8 * GB
    assert machine_for(PlanQuery(vram=0, ram=16 * GB), here).device == "cpu"


@pytest.mark.parametrize("model", ["starter", "flux-dev", "unknown"])
def test_the_planner_needs_neither_torch_nor_comfyui(model: str, tmp_path: Path) -> None:
    """But to read a file, and there is none in these folders."""
    (tmp_path / "diffusion_models").mkdir()
    arguments = ["--model", model, "--models", str(tmp_path)]
    code = f"import sys; from neurolux.library.plan_command import main; main({arguments}); "
    code += "assert not {'torch', 'comfy', 'numpy', 'diffusers'} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(REPO / "custom_nodes")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)


def test_the_page_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """To write them anew: run each command and paste what it prints below its line."""
    examples = printed_examples()
    assert len(examples) == 3
    for command, text in examples:
        plan_command.main(command.split())
        assert capsys.readouterr().out.strip() == text, command
