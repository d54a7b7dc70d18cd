"""The route that takes one model out of memory. ComfyUI's ``/free`` takes all of them."""

from __future__ import annotations

import asyncio
import json
import time

from aiohttp import web
from server import PromptServer

from ..library.known_models import known_models
from ..loading.store import pipelines
from .refusals import refusal, unless_json

UNLOAD_PATH = "/neurolux/unload"
IDLE_WAIT_S = 2.0
"""How long to wait for ComfyUI to finish what it does between two prompts."""
POLL_S = 0.02


def add_unload_route(routes: web.RouteTableDef) -> None:
    """Register ``POST /neurolux/unload`` with ``{"model": name}``.

    The answer is ``{"unloaded", "busy"}``. Busy: a prompt runs, and nothing was changed.
    """

    @routes.post(UNLOAD_PATH)
    async def unload(request: web.Request) -> web.Response:
        if (refused := unless_json(request)) is not None:
            return refused
        try:
            name = (await request.json())["model"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            return refusal(400, "not_json", f'the body is not {{"model": "<name>"}}: {error!r}')
        if name not in known_models().models:
            return refusal(404, "unknown_model", f"no model is called {name!r}")
        return web.json_response(await asyncio.to_thread(_unload, name))


def _unload(name: str) -> dict[str, bool]:
    """Drop a model's pipelines while no prompt runs and none can begin."""
    queue = PromptServer.instance.prompt_queue
    deadline = time.monotonic() + IDLE_WAIT_S
    while True:
        with queue.mutex:  # ComfyUI takes the next prompt under this lock.
            if _waits_for_work(queue):
                return {"unloaded": pipelines.unload(name), "busy": False}
            running = bool(queue.currently_running)
        if running or time.monotonic() > deadline:
            return {"unloaded": False, "busy": True}
        time.sleep(POLL_S)


def _waits_for_work(queue) -> bool:  # noqa: ANN001 - execution.PromptQueue exists only inside ComfyUI
    """Whether ComfyUI's worker thread waits for a prompt.

    That nothing runs is not enough: between two prompts the thread walks through the list of models (``main.py:
    prompt_worker``), which must not change meanwhile. The condition's list of waiting threads is the only sign.
    """
    return bool(queue.not_empty._waiters) and not queue.queue and not queue.currently_running
