"""Where ComfyUI comes from, and what it is told about models and packs."""

from __future__ import annotations

import shutil
import sys
import threading
from pathlib import Path

import pytest
import yaml

from bridge.commands.main import main
from bridge.service import installer
from bridge.service.advisories import known_of
from bridge.service.children.comfyui import ComfyUIStartFailed, ManagedComfyUI
from bridge.service.device import find_device
from bridge.service.installer import Installation, InstallError, find_installation, write_extra_model_paths
from bridge.settings import Settings, SettingsError


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A fresh state directory, and a home without comfy-cli."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings = Settings(state_dir=tmp_path / "state")
    settings.make_directories()
    return settings


def make_comfyui(root: Path, version: str = "") -> Path:
    (root / "comfy").mkdir(parents=True)
    (root / "main.py").touch()
    if version:
        (root / "comfyui_version.py").write_text(f'# generated\n__version__ = "{version}"\n')
    return root


@pytest.mark.parametrize(
    ("file", "text", "version"),
    [
        ("comfyui_version.py", '# made by a script\n__version__ = "0.3.75"\n', "0.3.75"),
        ("pyproject.toml", '[project]\nname = "ComfyUI"\nversion = "0.33.0"\n', "0.33.0"),
        ("README.md", "0.3.75", "unknown"),
    ],
)
def test_the_version_is_read_from_its_files(tmp_path: Path, file: str, text: str, version: str) -> None:
    (tmp_path / file).write_text(text)
    assert Installation(tmp_path, Path(sys.executable), "named").version == version


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv without a package index and without anything in its cache."""
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))


def test_a_named_directory_comes_first_and_runs_with_its_own_python(settings: Settings, tmp_path: Path) -> None:
    root = make_comfyui(tmp_path / "mine")
    assert find_installation(Settings(comfyui_dir=root)) == Installation(root, Path(sys.executable), "named")
    python = root / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert find_installation(Settings(comfyui_dir=root)).python == python


def test_a_comfy_cli_workspace_comes_before_the_pinned_copy(settings: Settings, tmp_path: Path) -> None:
    config = Path("~/.config/comfy-cli/config.ini").expanduser()
    config.parent.mkdir(parents=True)
    recent = make_comfyui(tmp_path / "recent")
    config.write_text(f"[DEFAULT]\ndefault_workspace = {tmp_path / 'gone'}\nrecent_workspace = {recent}\n")
    assert find_installation(settings) == Installation(recent, Path(sys.executable), "comfy-cli")
    ours = make_comfyui(settings.state_dir / "comfy-cli" / "ComfyUI")
    assert find_installation(settings).root == ours


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [
        (["0.28.0", "0.30.1"], "0.30.1"),
        (["0.30.1", "0.28.0"], "0.30.1"),
        (["0.9.0", "0.28.0"], "0.28.0"),
        (["0.3.74", "0.28.0"], "0.28.0"),
        (["0.3.75", "0.3.74"], "0.3.75"),
        (["0.3.74", "0.3.9"], None),
        (["", "0.28.0"], "unknown"),
    ],
)
def test_the_newest_workspace_is_used_and_none_that_is_older_than_the_pinned_copy(
    settings: Settings, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    versions: list[str], chosen: str | None,
) -> None:  # fmt: skip
    config = Path("~/.config/comfy-cli/config.ini").expanduser()
    config.parent.mkdir(parents=True)
    first, second = (make_comfyui(tmp_path / f"comfy{number}", version) for number, version in enumerate(versions))
    config.write_text(f"[DEFAULT]\ndefault_workspace = {first}\nrecent_workspace = {second}\n")
    monkeypatch.setattr(installer, "pinned_installation", lambda *_: installation)
    said: list[str] = []
    found = find_installation(settings, said.append)
    assert found.version == (chosen or installer.PINNED_VERSION)
    assert (found is installation) == (chosen is None)
    assert sum("older than" in line for line in said) == sum(version.startswith("0.3.") for version in versions) - (
        "0.3.75" in versions
    )


def program(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


INSTALL = """
for word; do [ "$before" = --workspace ] && target=$word; before=$word; done
mkdir -p "$target/comfy" && touch "$target/main.py"
echo '__version__ = "0.40.0"' > "$target/comfyui_version.py"
"""


@pytest.mark.parametrize(
    ("git", "comfy", "version", "said"),
    [
        ("exit 0", INSTALL, "0.40.0", "install"),
        ("exit 0", 'mkdir -p "$3/comfy"; exit 1', installer.PINNED_VERSION, "taking ComfyUI"),
        ("exit 128", INSTALL, installer.PINNED_VERSION, ""),
        ("", INSTALL, installer.PINNED_VERSION, ""),
        ("exit 0", "", installer.PINNED_VERSION, ""),
    ],
    ids=["reachable", "fails", "no network", "no git", "no comfy-cli"],
)
def test_setup_prefers_a_newer_comfyui_where_one_can_be_had(
    settings: Settings, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    git: str, comfy: str, version: str, said: str,
) -> None:  # fmt: skip
    """GitHub and comfy-cli are played by programs: neither can be had on every machine that runs the tests."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in {"git": git, "comfy": comfy}.items():
        if script:
            program(programs / name, script)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin" if git else str(programs))
    if not git:
        monkeypatch.setattr(installer.shutil, "which", lambda name: str(programs / name) if name == "comfy" else None)
    monkeypatch.setattr(installer.sys, "executable", "/nowhere/python")
    monkeypatch.setattr(installer, "pinned_installation", lambda *_: installation)
    lines: list[str] = []
    found = installer.newest_installation(settings, gpu="cpu", say=lines.append)
    assert found.version == version
    assert said in "\n".join(lines)
    assert found is installation or found.root == installer.own_comfy_cli_workspace(settings)
    assert find_installation(settings).version == version, "what `imagegen up` starts"


def test_setup_says_the_version_and_what_is_known_of_it(
    installation: Installation, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["setup", "--comfyui-dir", str(installation.root), "--state-dir", str(settings.state_dir)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"ComfyUI  {installer.PINNED_VERSION} in {installation.root}")
    for advisory in known_of(installer.PINNED_VERSION):
        assert advisory.id in printed
    assert printed.count("closed by NeuroLux's guard") == 4


def test_a_broken_comfy_cli_configuration_is_no_workspace(
    settings: Settings, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Path("~/.config/comfy-cli/config.ini").expanduser()
    config.parent.mkdir(parents=True)
    config.write_text("no section, no key")
    monkeypatch.setattr(installer, "pinned_installation", lambda *_: installation)
    assert find_installation(settings) is installation


def test_the_pinned_copy_is_unpacked_once_even_by_two_at_once(settings: Settings) -> None:
    half = settings.state_dir / f"comfyui-{installer.PINNED_VERSION}"
    half.mkdir()
    (half / "main.py").write_text("half unpacked, without the marker")
    (settings.state_dir / f".comfyui-{installer.PINNED_VERSION}-killed").mkdir()
    said: list[str] = []
    found: list[Installation] = []
    threads = [
        threading.Thread(target=lambda: found.append(installer.pinned_installation(settings, said.append)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Installation(half, Path(sys.executable), "pinned")] * 2
    assert len(said) == 1
    assert "prompt_worker" in (half / "main.py").read_text()
    assert not (half / "extra_model_paths.yaml").exists()
    assert [path.name for path in settings.state_dir.glob(".comfyui-*")] == []


def test_a_wrong_hash_installs_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer, "PINNED_SHA256", "0" * 64)
    with pytest.raises(InstallError, match="whose sha256 is not 000000000000…"):
        installer.pinned_installation(settings)
    assert not (settings.state_dir / f"comfyui-{installer.PINNED_VERSION}").exists()


@pytest.mark.usefixtures("offline")
def test_no_network_is_said_with_the_ways_out(settings: Settings) -> None:
    with pytest.raises(InstallError, match="cannot reach the package index.*--comfyui-dir or --comfyui-url"):
        installer.pinned_installation(settings)


def test_comfyui_is_told_of_our_pack_and_of_an_existing_installations_models_and_packs(
    settings: Settings, tmp_path: Path
) -> None:
    root = make_comfyui(tmp_path / "mine")
    for folder in ("models/checkpoints", "models/loras", "custom_nodes/other"):
        (root / folder).mkdir(parents=True)
    named = Installation(root, Path(sys.executable), "named")
    config = yaml.safe_load(write_extra_model_paths(settings, named).read_text())
    ours = str(installer.PACK.parent)
    assert config["neurolux"]["custom_nodes"].split("\n") == [ours, str(root / "custom_nodes")]
    assert config["existing"] == {
        "base_path": str(root / "models"),
        "checkpoints": "checkpoints",
        "loras": "loras",
    }
    (root / "custom_nodes" / "neurolux").symlink_to(installer.REPOSITORY)  # then it is there already
    config = yaml.safe_load(write_extra_model_paths(settings, named).read_text())
    assert config["neurolux"]["custom_nodes"] == str(root / "custom_nodes")


def test_comfy_cli_that_fails_is_said_with_the_way_out(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    program = shutil.which("false")
    assert program
    monkeypatch.setattr(installer.shutil, "which", lambda _: program)
    monkeypatch.setattr(installer.sys, "executable", "/nowhere/python")
    with pytest.raises(InstallError, match=r"needs git and github\.com"):
        installer.install_with_comfy_cli(settings, gpu="cpu")


async def test_a_real_comfyui_that_refuses_its_arguments_is_told_with_the_variable(
    settings: Settings, installation: Installation
) -> None:
    comfyui = ManagedComfyUI(
        installation,
        base_directory=settings.comfyui_base,
        extra_model_paths=None,
        log_file=settings.logs / "comfyui.log",
        env={"IMAGEGEN_COMFYUI_ARGS": "--no-such-option", "PATH": ""},
    )
    await comfyui.start()
    with pytest.raises(ComfyUIStartFailed, match=r"unrecognized arguments: --no-such-option \(check IMAGEGEN_COMFYUI"):
        await comfyui.wait_ready()
    await comfyui.stop()


def test_the_device_is_found_without_torch() -> None:
    assert find_device(Path(sys.executable)).kind in ("cpu", "cuda", "rocm", "mps")


def test_settings_come_from_the_environment_and_the_command_line_wins(tmp_path: Path) -> None:
    env = {"IMAGEGEN_PORT": "9000", "IMAGEGEN_HOST": "::1", "IMAGEGEN_STATE_DIR": str(tmp_path), "IMAGEGEN_TOKEN": ""}
    settings = Settings.from_environment(env, port=9001, host=None)
    assert (settings.port, settings.host, settings.state_dir, settings.token) == (9001, "::1", tmp_path, None)
    assert settings.url == "http://[::1]:9001"
    with pytest.raises(SettingsError, match="port 70000 is not between 1 and 65535"):
        Settings(port=70000)
