"""Drops what the pack caches when ComfyUI is asked to free its memory."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from ..stages.prompts.embedding_cache import embedding_cache

FREE_PATHS = ("/free", "/api/free")


@web.middleware
async def forget_prompts(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Drop encoded prompts when ``/free`` asks for ``free_memory``, which drops ComfyUI's own cache too."""
    response = await handler(request)
    if request.method == "POST" and request.path in FREE_PATHS and (await request.json()).get("free_memory"):
        embedding_cache.clear()
    return response
