"""``imagegen models --recommend``: the best model for any card, why, and nothing downloaded."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
from neurolux.catalog.reading import read_catalog
from neurolux.library import recommend_command
from neurolux.library.recommendation import PERMISSIVE

from bridge.commands.main import main


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> socket.socket:
    """A Hub that nobody may connect to, and an empty cache."""
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("NEUROLUX_DEFAULT_MODEL", raising=False)
    return server


def test_it_says_what_and_why_line_by_line_and_downloads_nothing(
    hub: socket.socket, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    where = ("--state-dir", str(tmp_path / "state"))
    assert main(["models", "--recommend", "--card", "RTX 3060", "--ram", "32GB", *where]) == 0
    text = capfd.readouterr().out
    head = text.partition("\n")[0]
    name = head.rpartition(": ")[2]
    assert head.startswith("For an RTX 3060 with 12.4 GB free, 30.0 GB of RAM free: ")
    for label in ("licence", "size", "memory", "time", "to get it"):
        assert f"\n  {label} " in text
    assert f"imagegen load {name}\n" in text
    assert "Nothing is downloaded until you ask for it. Requests that name no model get starter." in text
    for other in {*read_catalog().models} - {name}:
        assert f"\n  {other} " in text
    with pytest.raises(BlockingIOError):
        hub.accept()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_json_holds_licence_gate_terms_and_size_of_every_model(
    hub: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recommend_command.main(["--vram", "12GB", "--ram", "32GB", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    best = answer["recommended"]
    assert best["license"] in PERMISSIVE
    assert (best["commercial_use"], best["gated"], best["fits"], best["reason"]) == (True, False, True, None)
    assert best["download_bytes"] > 10**9
    assert answer["default"] == "starter"
    entries = {entry["model"]: entry for entry in answer["others"]}
    assert {*entries, best["model"]} == {*read_catalog().models}
    assert all(entry["reason"] for entry in entries.values())
    assert entries["flux-dev"]["gated"]
    assert "attachment" in entries["sdxl-base"]["terms"]


def test_what_is_here_comes_first(
    tiny_models: dict[str, Path], tmp_path: Path, hub: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_models["tiny-sdxl"], tmp_path / "models" / "diffusers" / "sdxl-base")
    arguments = [f"--models={tmp_path / 'models'}", "--vram", "12GB", "--ram", "32GB"]
    assert recommend_command.main(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("For a card with 11.5 GB free, 30.0 GB of RAM free: sdxl-base\n")
    assert "Requests that name no model get sdxl-base." in text
    assert "Nothing is downloaded" not in text
    assert "imagegen load" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recommend", "--card", "RTX 306"), "card 'RTX 306' is not known; known are GTX 1080 Ti"),
        (("--recommend", "--vram", "8 apples"), "vram '8 apples' is not a size; write 8GB, 7.5GB or 8GiB"),
        (("--ram", "8GB"), "--ram goes with --recommend: imagegen models --recommend --ram '8GB'"),
    ],
)
def test_a_wrong_argument_is_one_line(
    capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert main(["models", *arguments]) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"imagegen: {message}")
    assert error.count("\n") == 1
