"""The pack's entry point for ComfyUI: returns the nodes and adds the routes to ComfyUI's server."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io
from comfy_execution.caching import RAMPressureCache
from server import PromptServer

from .guard.middleware import add_guard
from .loading.store import pipelines
from .memory.manager import on_ram_request
from .nodes import NODES
from .nodes.schema.manners import with_manners
from .routes.registration import add_routes


class NeuroLuxExtension(ComfyExtension):
    """The extension object that ComfyUI asks for the pack's nodes."""

    def __init__(self) -> None:
        # Not in on_load: ComfyUI 0.3.75 to 0.12 declare it but never call it.
        on_ram_request(RAMPressureCache, pipelines.give_back)
        if PromptServer.instance is not None and add_routes(PromptServer.instance.routes):
            add_guard(PromptServer.instance.app)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [with_manners(node) for node in NODES]
