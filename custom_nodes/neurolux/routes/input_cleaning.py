"""The route that removes uploads that no job needs any more from ComfyUI's input folder, which ComfyUI never does.

It touches only names that the bridge gives (see `UPLOADED`): an image that a person put into the folder stays.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web
from server import PromptServer

CLEAN_PATH = "/neurolux/inputs/clean"
FOLDER = "imagegen"
"""The subfolder that the bridge uploads to."""
UPLOADED = re.compile(r"[0-9a-f]{32}\.\w{1,8}", re.ASCII)
"""How the bridge names an upload: the start of its SHA-256, and an extension."""


def add_cleaning_route(routes: web.RouteTableDef) -> None:
    """Register ``POST /neurolux/inputs/clean`` with ``{"older_than_s", "most_bytes", "keep": [names]}``."""

    @routes.post(CLEAN_PATH)
    async def clean_inputs(request: web.Request) -> web.Response:
        try:
            wanted = await request.json()
            older_than_s, most_bytes = float(wanted["older_than_s"]), int(wanted["most_bytes"])
            keep = {str(name) for name in wanted["keep"]}
        except (ValueError, KeyError, TypeError) as error:
            return web.json_response(
                {"error": f"invalid request: {error!r}; send older_than_s, most_bytes and keep"}, status=400
            )
        keep |= names_in(PromptServer.instance.prompt_queue.get_current_queue())
        folder = Path(folder_paths.get_input_directory()) / FOLDER
        removed = await asyncio.to_thread(
            clean, folder, older_than_s=older_than_s, most_bytes=most_bytes, keep=keep, now=time.time()
        )
        return web.json_response({"removed": removed})


def names_in(prompts: Any) -> set[str]:
    """The uploads that running and waiting prompts refer to, whoever sent them."""
    return set(UPLOADED.findall(json.dumps(prompts, default=str)))


def clean(folder: Path, *, older_than_s: float, most_bytes: int, keep: Container[str], now: float) -> list[str]:
    """Remove uploads that are too old, then the oldest until the rest fit in ``most_bytes``. Returns their names."""
    if not folder.is_dir():
        return []
    found = [(path.stat(), path) for path in folder.iterdir() if UPLOADED.fullmatch(path.name) and path.is_file()]
    left = sum(stat.st_size for stat, _ in found)
    removed: list[str] = []
    for stat, path in sorted(found, key=lambda item: item[0].st_mtime):
        if path.name not in keep and (now - stat.st_mtime > older_than_s or left > most_bytes):
            path.unlink(missing_ok=True)
            left -= stat.st_size
            removed.append(path.name)
    return removed
