"""What the bridge knows of the NeuroLux node pack of a ComfyUI: its models, and how one is loaded."""

from __future__ import annotations

from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIError, ComfyUIUnavailable
from bridge.contract import ModelInfoResponse, Unavailable

PACK_ROUTE = "/neurolux/models"
RESULT_NODE = "NeuroLuxResult"
"""Every mode ends in one. The route is there before the nodes, so it alone says nothing of them."""
MODES_VARIABLE = "NEUROLUX_MODES_DIR"
"""Where the editor's "Publish as mode" saves; without it the pack takes the default state folder's workflows."""
SERVICE_VARIABLE = "NEUROLUX_SERVICE_URL"
"""What it says that the endpoint is on."""
NODE_ROUTE = f"/object_info/{RESULT_NODE}"


async def model_info(comfy: ComfyUI) -> ModelInfoResponse:
    """What the node pack in this ComfyUI says of its models. Raises Unavailable, also where its nodes are missing."""
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
    """Raise Unavailable unless ComfyUI has loaded the pack's nodes; raises ComfyUIError too."""
    if RESULT_NODE not in await comfy.get_json(NODE_ROUTE):  # An unknown class is answered with {}.
        raise Unavailable(
            f"ComfyUI at {comfy.url} runs without NeuroLux's nodes ({RESULT_NODE} is missing): its log says why after "
            "'Cannot import' or 'comfy_entrypoint' (imagegen up writes it to logs/comfyui.log in the state directory)"
        )
