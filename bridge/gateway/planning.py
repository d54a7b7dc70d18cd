"""How a model would lie in memory: a worker passes the question to its ComfyUI's node pack. Nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import ValidationError

from bridge.broker.fleet import answer_of, ask_worker
from bridge.broker.jobs import JobQueue
from bridge.comfyui import ComfyUI, ComfyUIError
from bridge.contract.errors import GenerationFailed, Unavailable
from bridge.contract.messages import ErrorBody, ErrorEnvelope
from bridge.contract.plans import ModelPlan

PLAN_ROUTE = "/neurolux/plan"
PLAN_TIMEOUT_S = 15.0
REFUSALS = (404, 422, 503)
"""What the pack answers to a question that it does not answer, with an error in the bridge's own shape."""


async def ask_for_plan(queue: JobQueue, model: str, query: Mapping[str, str]) -> ModelPlan:
    """The plan for `model`, by any worker. Raises Unavailable, or the node pack's refusal (404, 422)."""
    question = json.dumps({**query, "model": model}).encode()
    answer = await ask_worker(queue.nc, queue.names.plan, question, PLAN_TIMEOUT_S)
    if answer.startswith(b'{"error"'):
        raise GenerationFailed(ErrorEnvelope.model_validate_json(answer).error)
    return ModelPlan.model_validate_json(answer)


async def answer_plan(comfy: ComfyUI, question: bytes) -> bytes:
    """A worker's reply to `ask_for_plan`: the plan, or an error envelope."""
    return await answer_of(plan_of(comfy, question), "planning")


async def plan_of(comfy: ComfyUI, question: bytes) -> ModelPlan:
    """What the node pack in this ComfyUI plans. Raises Unavailable, or the pack's own refusal."""
    try:
        status, answer = await comfy.ask_json(PLAN_ROUTE, json.loads(question), accept=REFUSALS)
        if status == 200:
            return ModelPlan.model_validate(answer)
        told = answer["error"]  # The pack may say more than the wire has room for.
        error = ErrorBody.model_validate({name: told[name] for name in ErrorBody.model_fields if name in told})
    except ComfyUIError as error:
        raise Unavailable("ComfyUI does not plan: it is down, or its NeuroLux node pack is older than this") from error
    except (ValidationError, LookupError, TypeError) as error:
        raise Unavailable("the NeuroLux node pack of this ComfyUI is another version; update it") from error
    raise GenerationFailed(error)
