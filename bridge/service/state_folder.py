"""The state folder belongs to one user: nobody else may read the prompts, images and tokens in it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from bridge.service.errors import ServiceError
from bridge.settings import Settings

OTHERS = stat.S_IRWXG | stat.S_IRWXO
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
OWN_NAMES = (
    "comfyui", "comfyui-*", "comfy-cli", "workflows", "nats", "nats.conf", "*.token", "logs", "runtime.json",
    ".runtime-*", ".comfyui-*", "service.lock", "extra_model_paths.yaml", "damaged", "lost+found",
)  # fmt: skip
"""What the service keeps in a state folder. A folder that holds anything else is not the service's alone."""


def prepare(settings: Settings, say: Callable[[str], None]) -> None:
    """Create the folders of the state folder, and close it to other users. Raises ServiceError if that is impossible.

    A folder that is the service's alone gets mode 0700. In a folder with other files in it (a home folder, say), the
    service's own folders do; it is refused where others may write, because they could replace what is in it.
    """
    root = settings.state_dir
    try:
        settings.make_directories()
        for folder in (root, settings.comfyui_base, settings.workflows, settings.nats_store, settings.logs):
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise ServiceError(
                    f"{folder} cannot be written: run imagegen doctor --repair, or use another --state-dir"
                )
        problem = loose(root)
        if problem is None:
            return
        if os.geteuid() != root.stat().st_uid:
            raise ServiceError(
                f"the state folder {root} {problem} and belongs to another user: use another --state-dir"
            )
        strangers = [path.name for path in root.iterdir() if not any(path.match(name) for name in OWN_NAMES)]
        if not strangers:
            root.chmod(0o700)
            say(f"the state folder {root} {problem}: only its owner may use it now (mode 700)")
            return
        if root.stat().st_mode & WRITABLE_BY_OTHERS:
            raise ServiceError(
                f"the state folder {root} {problem}, and holds files that are not the service's ({strangers[0]}): "
                f"use a folder of its own with --state-dir, or close this one with: chmod 700 {root}"
            )
        for folder in (settings.comfyui_base, settings.workflows, settings.nats_store, settings.logs):
            if loose(folder):
                folder.chmod(0o700)
    except OSError as error:
        raise ServiceError(
            f"cannot use the state folder: {error.filename or root} ({error.strerror}); run imagegen doctor --repair, "
            "or choose another --state-dir"
        ) from None


def loose(path: Path) -> str | None:
    """What others may do with a folder or file; None if nothing."""
    mode = path.stat().st_mode
    if not mode & OTHERS:
        return None
    return f"can be {'written' if mode & WRITABLE_BY_OTHERS else 'read'} by other users (mode {stat.S_IMODE(mode):o})"


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, whatever the file was before."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(file, "w", encoding="utf-8") as opened:
        os.fchmod(file, 0o600)
        opened.write(text)
