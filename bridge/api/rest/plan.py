"""How a model would lie in memory, on the worker's machine or on one that is described."""

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
    "How a model would lie in memory; nothing is loaded",
    answers={200: Answer("The plan, whether it fits or not.", ModelPlan)},
    errors=(404, 422, 503),
    parameters=[
        Query("vram", SIZE, "A card's memory; 0 for a CPU. The worker's machine unless given."),
        Query("ram", SIZE, "The machine's RAM. What is free of the worker's unless given."),
        Query("bf16", {"type": "boolean"}, "Whether the card computes in bf16."),
        Query("width", COUNT, "Pixels. The model's own unless given, as of all that follow."),
        Query("height", COUNT, "Pixels; as wide as high unless given."),
        Query("count", COUNT, "Images."),
        Query("steps", COUNT, "Denoising steps."),
        Query("precision", {"type": "string", "enum": list(PRECISIONS)}, "The type of the weights."),
        Query("offload", {"type": "string", "enum": list(OFFLOADS)}, "Where the weights are."),
        Query("controlnet", {"type": "string"}, "ControlNets beside it: names, or sizes such as 2.5GB, with commas."),
        Query("lora", {"type": "string"}, "LoRAs in it, likewise."),
    ],
)
async def plan(request: web.Request) -> web.Response:
    """The plan for a model."""
    queue = request.app[GENERATION].queue
    return reply(await ask_for_plan(queue, request.match_info["model"], dict(request.query)))
