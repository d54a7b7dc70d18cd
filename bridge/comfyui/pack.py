"""The NeuroLux node pack of a ComfyUI: its routes, its models, and whether its nodes are loaded."""

from __future__ import annotations

from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIError, ComfyUIUnavailable
from bridge.contract import ModelInfoResponse, Unavailable

PACK_ROUTE = "/neurolux/models"
RESULT_NODE = "NeuroLuxResult"
"""Every mode ends in one. The pack's routes exist before its nodes, so they do not prove that the nodes are loaded."""
MODES_VARIABLE = "NEUROLUX_MODES_DIR"
"""The folder where the editor's "Publish as mode" saves; by default the workflows of the default state folder."""
SERVICE_VARIABLE = "NEUROLUX_SERVICE_URL"
"""The URL that the editor shows for a published endpoint."""
NODE_ROUTE = f"/object_info/{RESULT_NODE}"
UNLOAD_ROUTE = "/neurolux/unload"
RESTART_ROUTE = "/neurolux/restart"


async def model_info(comfy: ComfyUI) -> ModelInfoResponse:
    """The models that the node pack of this ComfyUI reports. Raises Unavailable, also if its nodes are missing."""
    try:
        info = ModelInfoResponse.model_validate(await comfy.get_json(PACK_ROUTE))
        await require_nodes(comfy)
        return info
    except ComfyUIUnavailable as error:
        raise Unavailable("ComfyUI is down or still starting; try again in a moment") from error
    except ComfyUIError as error:
        raise Unavailable(
            "ComfyUI runs without the NeuroLux node pack; link this repository into its custom_nodes folder and "
            "restart it, or let imagegen start its own ComfyUI"
        ) from error


async def require_nodes(comfy: ComfyUI) -> None:
    """Raise Unavailable unless ComfyUI has loaded the pack's nodes. Raises ComfyUIError too."""
    if RESULT_NODE not in await comfy.get_json(NODE_ROUTE):  # ComfyUI answers {} for an unknown class.
        raise Unavailable(
            f"ComfyUI at {comfy.url} runs without NeuroLux's nodes ({RESULT_NODE} is missing): its log says why after "
            "'Cannot import' or 'comfy_entrypoint' (imagegen up writes it to logs/comfyui.log in the state directory)"
        )


async def unload_model(comfy: ComfyUI, model: str) -> bool:
    """Have the pack take one model out of memory. True: a prompt runs, and nothing was changed. Raises ComfyUIError."""
    return bool((await comfy.post_json(UNLOAD_ROUTE, {"model": model})).get("busy"))


async def restart(comfy: ComfyUI, prompt_id: str) -> None:
    """Have a ComfyUI that is stuck with a prompt end its process, if something starts it again. Raises ComfyUIError."""
    await comfy.post_json(RESTART_ROUTE, {"prompt_id": prompt_id})
