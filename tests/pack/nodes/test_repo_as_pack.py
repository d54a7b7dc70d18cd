"""The repository, linked into ComfyUI's custom_nodes, is the pack; importing it without ComfyUI is harmless."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from PIL import Image

from tests.pack.comfy_server import comfyui_dir, running_comfyui
from tests.pack.graphs import text_to_image
from tests.tiny_models import WRITERS

REPO = Path(__file__).parents[3]
PACK = REPO / "custom_nodes" / "neurolux"


def test_the_linked_repository_makes_a_image(tmp_path: Path) -> None:
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / "neurolux-imagegen").symlink_to(REPO)
    WRITERS["tiny-flux-schnell"](tmp_path / "models" / "diffusers" / "tiny-flux-schnell")
    with running_comfyui(comfyui_dir(), tmp_path, None) as server:
        (image,) = server.images(server.run(text_to_image("tiny-flux-schnell")))
        assert image.size == (128, 128)
        assert server.get_bytes("/extensions/neurolux-imagegen/docs/NeuroLuxSample.md").startswith(b"# Sample")
        assert server.get("/neurolux/models")["current_model"] == "tiny-flux-schnell"
        assert "neurolux-imagegen" in server.get("/workflow_templates")


def test_importing_without_comfyui_does_nothing() -> None:
    for folder in (REPO, PACK):
        code = (
            "import importlib.util, sys;"
            f"spec = importlib.util.spec_from_file_location('pack', {str(folder / '__init__.py')!r});"
            "module = importlib.util.module_from_spec(spec); sys.modules['pack'] = module;"
            "spec.loader.exec_module(module);"
            "assert callable(module.comfy_entrypoint) and module.WEB_DIRECTORY;"
            "assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def packed(folder: Path) -> Path:
    """The archive that would be sent to the registry, made by comfy-cli from a copy of the repository."""
    copy = folder / "repository"
    ignored = shutil.ignore_patterns("__pycache__", ".*_cache", "node.zip")
    for part in ("custom_nodes", "workflows"):
        shutil.copytree(REPO / part, copy / part, symlinks=True, ignore=ignored)
    shutil.copyfile(REPO / "LICENSE", copy / "LICENSE")
    for command in (["git", "init", "--quiet"], ["git", "add", "."]):
        subprocess.run(command, cwd=copy, check=True, env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull})
    pack = copy / "custom_nodes" / "neurolux"
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "node", "pack"]
    environment = {**os.environ, "DO_NOT_TRACK": "1", "HOME": str(folder)}
    run = subprocess.run(command, cwd=pack, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return pack / "node.zip"


def test_the_archive_for_the_registry_installs_into_a_bare_comfyui_and_runs(tmp_path: Path) -> None:
    installed = tmp_path / "base" / "custom_nodes" / "neurolux"
    with zipfile.ZipFile(packed(tmp_path)) as archive:
        archive.extractall(installed)
    assert (installed / "LICENSE").read_text() == (REPO / "LICENSE").read_text()
    WRITERS["tiny-flux-schnell"](tmp_path / "base" / "models" / "diffusers" / "tiny-flux-schnell")
    with running_comfyui(comfyui_dir(), tmp_path / "base", None) as server:
        (image,) = server.images(server.run(text_to_image("tiny-flux-schnell")))
        assert image.size == (128, 128)
        assert len(server.get("/workflow_templates")["neurolux"]) == len(list((REPO / "workflows").glob("*.json")))
        assert server.get_bytes("/extensions/neurolux/docs/NeuroLuxSample.md").startswith(b"# Sample")
        assert "NeuroLuxSample" in server.get("/i18n")["en"]["nodeDefs"]


def test_pack_can_be_published() -> None:
    document = tomllib.loads((PACK / "pyproject.toml").read_text())
    project, comfy = document["project"], document["tool"]["comfy"]
    assert comfy["PublisherId"]
    assert comfy["DisplayName"]
    assert len(project["version"].split(".")) == 3
    assert (PACK / "example_workflows").resolve() == REPO / "workflows"
    assert (PACK / project["license"]["file"]).read_text() == (REPO / "LICENSE").read_text()
    kinds = {each.split(" :: ")[0] for each in project["classifiers"]}
    assert kinds == {"Operating System", "Environment"}
    images = f"{project['urls']['Repository']}/main/docs/images/".replace("github.com", "raw.githubusercontent.com")
    sizes = {}
    for key in ("Icon", "Banner"):
        assert comfy[key].startswith(images)
        with Image.open(REPO / "docs" / "images" / comfy[key].removeprefix(images)) as image:
            sizes[key] = image.size
    assert sizes["Icon"] == (400, 400)
    assert sizes["Banner"][0] * 9 == sizes["Banner"][1] * 21
