"""Memory plans: a worker asks its ComfyUI's node pack where each part of a model would live. Nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping

from bridge.broker.jobs import JobQueue
from bridge.broker.questions import ask_worker
from bridge.contract import ModelPlan

PLAN_TIMEOUT_S = 15.0


async def ask_for_plan(queue: JobQueue, model: str, query: Mapping[str, str]) -> ModelPlan:
    """The plan for `model`, from any worker. Raises Unavailable, and WorkerError where the node pack refuses."""
    question = json.dumps({**query, "model": model}).encode()
    return await ask_worker(queue.nc, queue.names.plan, question, ModelPlan, timeout_s=PLAN_TIMEOUT_S)
