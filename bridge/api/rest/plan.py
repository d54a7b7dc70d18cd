"""Memory plans: where a model would live, on the worker's machine or on one that the request describes."""

from __future__ import annotations

from aiohttp import web

from bridge.api.rest.operations import Answer, Query, operation
from bridge.api.rest.replies import GENERATION, reply
from bridge.contract import ModelPlan
from bridge.gateway.planning import ask_for_plan

SIZE = {"type": "string", "examples": ["8GB", "7.5GB", "8GiB"]}
COUNT = {"type": "integer", "minimum": 1}
PRECISIONS = ("auto", "bf16", "fp16", "fp32", "fp8", "int8", "nf4", "as-is")
OFFLOADS = ("auto", "none", "model", "stream", "sequential", "disk")

routes = web.RouteTableDef()


@routes.get("/v1/models/{model}/plan")
@operation(
    "Plan where a model would live in memory; nothing is loaded",
    answers={200: Answer("The plan; its `fits` says whether the model fits.", ModelPlan)},
    errors=(404, 422, 503),
    parameters=[
        Query("vram", SIZE, "Memory of the GPU; 0 for a CPU. Default: the worker's."),
        Query("ram", SIZE, "RAM of the machine. Default: the free RAM of the worker."),
        Query("bf16", {"type": "boolean"}, "Whether the GPU computes in bf16."),
        Query("width", COUNT, "Pixels. Default, here and below: the model's."),
        Query("height", COUNT, "Pixels. Default: the width."),
        Query("count", COUNT, "Number of images."),
        Query("steps", COUNT, "Denoising steps."),
        Query("precision", {"type": "string", "enum": list(PRECISIONS)}, "The type of the weights."),
        Query("offload", {"type": "string", "enum": list(OFFLOADS)}, "Where the weights are."),
        Query(
            "controlnet",
            {"type": "string"},
            "ControlNets to include: names, or sizes such as 2.5GB, separated by commas.",
        ),
        Query("lora", {"type": "string"}, "LoRAs to include: names or sizes, separated by commas."),
    ],
)
async def plan(request: web.Request) -> web.Response:
    """The plan for a model."""
    queue = request.app[GENERATION].queue
    return reply(await ask_for_plan(queue, request.match_info["model"], dict(request.query)))
