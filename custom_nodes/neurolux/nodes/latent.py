"""Empty Latent: the size and number of the images, with the model's own size as the default."""

from __future__ import annotations

from comfy_api.latest import io

from ..loading.handle import PipelineHandle
from ..stages.latent import empty_latent
from .inputs import batch_input, pipeline_input, size_inputs
from .sockets import CATEGORY


class EmptyLatent(io.ComfyNode):
    """Empty Latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxEmptyLatent",
            display_name="Empty Latent",
            category=CATEGORY,
            description="An empty image to draw on. Like Empty Latent Image, but it knows what the model likes.",
            inputs=[
                pipeline_input(),
                *size_inputs(),
                batch_input("How many images."),
            ],
            outputs=[io.Latent.Output("latent", display_name="latent", tooltip="Zeros of that size.")],
        )

    @classmethod
    def execute(cls, pipeline: PipelineHandle, width: int, height: int, batch_size: int) -> io.NodeOutput:
        return io.NodeOutput({"samples": empty_latent(pipeline.model, width, height, batch_size)})
