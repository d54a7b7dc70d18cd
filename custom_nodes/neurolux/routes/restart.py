"""The route that ends a ComfyUI whose prompt neither goes on nor stops, such as one that waits for a GPU that hangs.

No thread can be stopped from outside, so the process ends. The service that started it starts another.
"""

from __future__ import annotations

import asyncio
import logging
import os

from aiohttp import web
from server import PromptServer

from .refusals import refusal, unless_json
from .service import service_url

RESTART_PATH = "/neurolux/restart"
EXIT_CODE = 86
ANSWER_S = 0.2
"""How long the answer has to leave this process."""

_log = logging.getLogger(__name__)


def add_restart_route(routes: web.RouteTableDef) -> None:
    """Register ``POST /neurolux/restart`` with ``{"prompt_id": id}``.

    200: the process ends in a moment. 409: that prompt does not run (any more), or nobody would start another ComfyUI.
    """

    @routes.post(RESTART_PATH)
    async def restart(request: web.Request) -> web.Response:
        if (refused := unless_json(request)) is not None:
            return refused
        try:
            prompt_id = (await request.json())["prompt_id"]
        except (ValueError, KeyError, TypeError) as error:
            return refusal(400, "not_json", f'the body is not {{"prompt_id": "<id>"}}: {error!r}')
        running, _ = PromptServer.instance.prompt_queue.get_current_queue()
        if prompt_id not in [item[1] for item in running]:
            return refusal(409, "not_running", "that prompt does not run")
        if not service_url():
            return refusal(409, "not_managed", "nobody would start this ComfyUI again: restart it by hand")
        _log.error("NeuroLux: prompt %s neither goes on nor stops: ComfyUI ends, to be started again", prompt_id)
        asyncio.get_running_loop().call_later(ANSWER_S, os._exit, EXIT_CODE)
        return web.json_response({})
