"""Empty Latent: the size and number of the pictures, with the model's own size as the default."""

from __future__ import annotations

from comfy_api.latest import io

from ..pipelines.latent import empty_latent
from ..pipelines.registry import PipelineHandle
from .sockets import CATEGORY, PipelineType


class EmptyLatent(io.ComfyNode):
    """Empty Latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"default": 0, "min": 0, "max": 16384, "step": 16}
        return io.Schema(
            node_id="NeuroLuxEmptyLatent",
            display_name="Empty Latent",
            category=CATEGORY,
            description="An empty picture to draw on. Like Empty Latent Image, but it knows what the model likes.",
            inputs=[
                PipelineType.Input("pipeline", tooltip="The loaded model."),
                io.Int.Input("width", **side, tooltip="Pixels, a multiple of 16. 0: the model's default."),
                io.Int.Input("height", **side, tooltip="Pixels, a multiple of 16. 0: the model's default."),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="How many pictures."),
            ],
            outputs=[io.Latent.Output("latent", display_name="latent", tooltip="Zeros of that size.")],
        )

    @classmethod
    def execute(cls, pipeline: PipelineHandle, width: int, height: int, batch_size: int) -> io.NodeOutput:
        return io.NodeOutput({"samples": empty_latent(pipeline.model, width, height, batch_size)})
