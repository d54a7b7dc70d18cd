"""How a model would lie in memory: a worker passes the question to its ComfyUI's node pack. Nothing is loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import nats.errors
from pydantic import ValidationError

from bridge.broker import BROKER_ERRORS
from bridge.comfyui import ComfyUI, ComfyUIError
from bridge.contract import ErrorBody, ErrorEnvelope
from bridge.errors import BridgeError, GenerationFailed, Unavailable
from bridge.jobs import JobQueue
from bridge.plan_contract import ModelPlan

log = logging.getLogger(__name__)
PLAN_ROUTE = "/neurolux/plan"
PLAN_TIMEOUT_S = 15.0
REFUSALS = (404, 422, 503)
"""What the pack answers to a question that it does not answer, with an error in the bridge's own shape."""


async def ask_for_plan(queue: JobQueue, model: str, query: Mapping[str, str]) -> ModelPlan:
    """The plan for `model`, by any worker. Raises Unavailable, or the node pack's refusal (404, 422)."""
    question = json.dumps({**query, "model": model}).encode()
    try:
        msg = await queue.nc.request(queue.names.plan, question, timeout=PLAN_TIMEOUT_S)
    except nats.errors.NoRespondersError as error:
        raise Unavailable("no worker is running yet; try again in a moment") from error
    except BROKER_ERRORS as error:
        raise Unavailable(f"no worker answered ({error or type(error).__name__}); try again") from error
    if msg.data.startswith(b'{"error"'):
        raise GenerationFailed(ErrorEnvelope.model_validate_json(msg.data).error)
    return ModelPlan.model_validate_json(msg.data)


async def answer_plan(comfy: ComfyUI, question: bytes) -> bytes:
    """A worker's reply to `ask_for_plan`: the plan, or an error envelope."""
    try:
        return (await plan_of(comfy, json.loads(question))).model_dump_json().encode()
    except BridgeError as error:
        return error.envelope().model_dump_json().encode()
    except Exception as error:
        log.exception("planning failed")
        body = ErrorBody(code="internal_error", message=f"{type(error).__name__}: {error}")
        return ErrorEnvelope(error=body).model_dump_json().encode()


async def plan_of(comfy: ComfyUI, query: dict[str, Any]) -> ModelPlan:
    """What the node pack in this ComfyUI plans. Raises Unavailable, or the pack's own refusal."""
    try:
        status, answer = await comfy.ask_json(PLAN_ROUTE, query, accept=REFUSALS)
        if status == 200:
            return ModelPlan.model_validate(answer)
        told = answer["error"]  # The pack may say more than the wire has room for.
        error = ErrorBody.model_validate({name: told[name] for name in ErrorBody.model_fields if name in told})
    except ComfyUIError as error:
        raise Unavailable("ComfyUI does not plan: it is down, or its NeuroLux node pack is older than this") from error
    except (ValidationError, LookupError, TypeError) as error:
        raise Unavailable("the NeuroLux node pack of this ComfyUI is another version; update it") from error
    raise GenerationFailed(error)
