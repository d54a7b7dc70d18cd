"""Memory plans from the node pack of this worker's ComfyUI, for a gateway that asks."""

from __future__ import annotations

import json

from pydantic import ValidationError

from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIError
from bridge.contract import ErrorBody, ModelPlan, Unavailable, WorkerError

PLAN_ROUTE = "/neurolux/plan"
REFUSALS = (404, 422, 503)
"""Statuses with which the pack refuses a plan; the error has the bridge's own shape."""


async def plan_of(comfy: ComfyUI, question: bytes) -> ModelPlan:
    """The plan that the node pack of this ComfyUI makes. Raises Unavailable, and WorkerError where the pack refuses."""
    try:
        status, answer = await comfy.ask_json(PLAN_ROUTE, json.loads(question), accept=REFUSALS)
        if status == 200:
            return ModelPlan.model_validate(answer)
        # The pack may send more fields than the wire has.
        refusal = ErrorBody.model_validate(answer["error"], extra="ignore")
    except ComfyUIError as error:
        raise Unavailable("ComfyUI cannot make a plan: it is down, or its NeuroLux node pack is too old") from error
    except (ValidationError, LookupError, TypeError) as error:
        raise Unavailable("the NeuroLux node pack of this ComfyUI is another version; update it") from error
    raise WorkerError(refusal)
