"""The repository, linked into ComfyUI's custom_nodes, is the pack; importing it without ComfyUI is harmless."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

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


def test_pack_can_be_published() -> None:
    document = tomllib.loads((PACK / "pyproject.toml").read_text())
    assert document["tool"]["comfy"]["PublisherId"]
    assert len(document["project"]["version"].split(".")) == 3
    assert (PACK / "example_workflows").resolve() == REPO / "workflows"
