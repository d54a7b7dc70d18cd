"""The stages of making an image: Encode Prompt, Empty Latent, Sample, Decode."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..adapters.borrow import borrow
from ..adapters.lora.distilled import as_sampled
from ..loading.handle import PipelineHandle
from ..loading.node_progress import NodeReporter
from ..stages.decode import decode
from ..stages.latent import empty_latent, samples_of
from ..stages.prompts.conditioning import told_by
from ..stages.prompts.encode import encode
from ..stages.sample import plan_sample, sample
from .schema.inputs import (
    ReadsNegative,
    batch_input,
    guidance_input,
    negative_input,
    pipeline_input,
    seed_input,
    size_inputs,
    steps_input,
)
from .schema.outputs import stage_warnings_ui
from .schema.sockets import CATEGORY

_log = logging.getLogger(__name__)


class EncodePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxEncodePrompt",
            display_name="Encode Prompt",
            category=CATEGORY,
            description="Encodes a prompt with the model's own text encoders.",
            inputs=[
                pipeline_input(),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    dynamic_prompts=True,
                    tooltip="What the image shows. For a negative prompt: what it should not show.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("conditioning", display_name="conditioning", tooltip="The encoded prompt.")
            ],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, pipeline: PipelineHandle, text: str) -> io.NodeOutput:
        loaded = borrow(pipeline, NodeReporter())
        conditioning = encode(loaded, text)
        warnings = told_by(conditioning)
        for warning in warnings:
            _log.warning("NeuroLux: %s", warning)
        return io.NodeOutput(conditioning, ui=stage_warnings_ui(cls, loaded, warnings))


class EmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxEmptyLatent",
            display_name="Empty Latent",
            category=CATEGORY,
            description="An empty latent to start from. Unlike the stock node, it defaults to the model's own size.",
            inputs=[
                pipeline_input(),
                *size_inputs(),
                batch_input("Number of images."),
            ],
            outputs=[io.Latent.Output("latent", display_name="latent", tooltip="The empty latent.")],
        )

    @classmethod
    def execute(cls, pipeline: PipelineHandle, width: int, height: int, batch_size: int) -> io.NodeOutput:
        return io.NodeOutput({"samples": empty_latent(pipeline.model, width, height, batch_size)})


class Sample(ReadsNegative):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxSample",
            display_name="Sample",
            category=CATEGORY,
            description="Generates the image as a latent. Shows progress and previews, and stops when interrupted.",
            inputs=[
                pipeline_input(),
                io.Conditioning.Input("positive", tooltip="The encoded prompt."),
                io.Latent.Input(
                    "latent", tooltip="What to start from: an Empty Latent, or the output of Encode Image."
                ),
                seed_input("The same seed gives the same image. Image i of a batch uses seed + i."),
                steps_input(),
                guidance_input(),
                negative_input(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    optional=True,
                    tooltip=(
                        "How much of an encoded image is redrawn: near 0 it stays as it is, 1 redraws everything. "
                        "Only that fraction of the steps runs. An Empty Latent needs 1."
                    ),
                ),
            ],
            outputs=[io.Latent.Output("samples", display_name="latent", tooltip="The image as a latent, for Decode.")],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls,
        pipeline: PipelineHandle,
        positive: Any,
        latent: dict[str, Any],
        seed: int,
        steps: int,
        guidance: float,
        negative: Any = None,
        strength: float = 1.0,
    ) -> io.NodeOutput:
        pipeline = pipeline.for_steps(steps)
        model = as_sampled(pipeline.model, pipeline.loras)
        request = plan_sample(model, pipeline.spec.variant, latent, seed, steps, guidance, strength)
        loaded = borrow(pipeline, NodeReporter())
        samples = sample(loaded, request, positive, negative)
        ui = stage_warnings_ui(cls, loaded, told_by(positive, negative), lazy=negative is not None)
        return io.NodeOutput({"samples": samples}, ui=ui)


class Decode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxDecode",
            display_name="Decode",
            category=CATEGORY,
            description="Decodes a latent into images with the model's own VAE.",
            inputs=[pipeline_input(), io.Latent.Input("latent", tooltip="The output of Sample.")],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The images.")],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, pipeline: PipelineHandle, latent: dict[str, Any]) -> io.NodeOutput:
        loaded = borrow(pipeline, NodeReporter())
        return io.NodeOutput(decode(loaded, samples_of(latent)), ui=stage_warnings_ui(cls, loaded))
