"""NeuroLux Image Generation: diffusion models in ComfyUI, and typed parameters that make a graph an endpoint.

ComfyUI loads this folder as a node pack and calls ``comfy_entrypoint``. Importing it without ComfyUI does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """Register the nodes and the routes with ComfyUI."""
    from .extension import NeuroLuxExtension

    return NeuroLuxExtension()
