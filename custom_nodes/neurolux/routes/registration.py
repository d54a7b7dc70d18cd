"""Registers every route of the pack with ComfyUI's server."""

from __future__ import annotations

import logging

from aiohttp import web
from server import PromptServer

from .free import forget_prompts
from .input_cleaning import add_cleaning_route
from .models import MODELS_PATH, add_models_route
from .plan import add_plan_route
from .publish import add_publish_route
from .restart import add_restart_route
from .templates import titled_templates
from .unload import add_unload_route

_log = logging.getLogger(__name__)


def add_routes(routes: web.RouteTableDef) -> bool:
    """Register the pack's routes (ComfyUI serves each under /api as well).

    Returns False for a second copy of the pack in the same ComfyUI, which registers nothing: aiohttp refuses a path
    registered twice.
    """
    if any(getattr(route, "path", None) == MODELS_PATH for route in routes):
        _log.warning("NeuroLux: the pack is installed twice; remove one of its folders from custom_nodes")
        return False
    if PromptServer.instance is not None:
        PromptServer.instance.app.middlewares.extend((forget_prompts, titled_templates))
    add_models_route(routes)
    add_plan_route(routes)
    add_publish_route(routes)
    add_cleaning_route(routes)
    add_unload_route(routes)
    add_restart_route(routes)
    return True
