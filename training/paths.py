"""Where prepared data, checkpoints and the exported pipeline lie."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def work_dir() -> Path:
    """The folder for packages, sprites, latents and checkpoints: ``$STARTER_WORK`` or a user cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = Path(os.environ.get("STARTER_WORK", cache / "starter-training"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def export_dir() -> Path:
    """The finished pipeline in diffusers format."""
    return REPOSITORY / "custom_nodes" / "neurolux" / "models" / "starter"
