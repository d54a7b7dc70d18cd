"""The repository as a ComfyUI node pack: cloned or linked into ``ComfyUI/custom_nodes/`` it works as it is.

The pack itself lives in ``custom_nodes/neurolux``. Importing this without ComfyUI does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./custom_nodes/neurolux/web"


async def comfy_entrypoint() -> ComfyExtension:
    """Register the pack with the ComfyUI that asks."""
    from .custom_nodes.neurolux import comfy_entrypoint as entrypoint

    return await entrypoint()
