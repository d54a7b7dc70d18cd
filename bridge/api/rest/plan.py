"""Memory plans: where a model would live, on the worker's machine or on one that the request describes."""

from __future__ import annotations

from aiohttp import web

from bridge.api.http.operations import Answer, Query, operation
from bridge.api.http.replies import GENERATION, reply
from bridge.contract import ModelPlan
from bridge.gateway.planning import ask_for_plan

SIZE = {
    "type": "string",
    "pattern": r"^[0-9]{1,15}(\.[0-9]{1,6})?( ?([kKmMgGtT]([iI]?[bB])?|[bB]))?$",
    "x-hint": "is not a size; write 8GB, 7.5GB or 8GiB",
    "examples": ["8GB", "7.5GB", "8GiB"],
}
PIXELS = {"type": "integer", "minimum": 1, "maximum": 16384}
COUNT = {"type": "integer", "minimum": 1, "maximum": 10_000}
ADAPTERS = {"type": "string", "minLength": 1, "maxLength": 2000}
TRUTHS = ("true", "false", "True", "False", "yes", "no", "1", "0")
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
        Query("card", {"type": "string"}, "A GPU by its name, such as RTX 3060: its memory, formats and speed."),
        Query("disk", SIZE, "Bytes a second from the disk with the weights. Default: measured, or 1.5 GB."),
        Query("ram", SIZE, "RAM of the machine. Default: the free RAM of the worker."),
        Query("bf16", {"type": "string", "enum": list(TRUTHS)}, "Whether the GPU computes in bf16."),
        Query("width", PIXELS, "Pixels. Default, here and below: the model's."),
        Query("height", PIXELS, "Pixels. Default: the width."),
        Query("count", COUNT, "Number of images."),
        Query("steps", COUNT, "Denoising steps."),
        Query("frames", COUNT, "Frames of a video, with a motion adapter. Default: an image."),
        Query("precision", {"type": "string", "enum": list(PRECISIONS)}, "The type of the weights."),
        Query("offload", {"type": "string", "enum": list(OFFLOADS)}, "Where the weights are."),
        Query(
            "controlnet",
            ADAPTERS,
            "ControlNets to include: names, or sizes such as 2.5GB, separated by commas.",
        ),
        Query("lora", ADAPTERS, "LoRAs to include: names or sizes, separated by commas."),
    ],
)
async def plan(request: web.Request) -> web.Response:
    """The plan for a model."""
    queue = request.app[GENERATION].queue
    return reply(await ask_for_plan(queue, request.match_info["model"], dict(request.query)))
