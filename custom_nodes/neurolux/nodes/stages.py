"""The stages of making an image: Encode Prompt, Sample, Decode."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..adapters.borrow import borrow
from ..loading.handle import PipelineHandle
from ..loading.loaded import LoadedPipeline
from ..loading.node_progress import NodeReporter
from ..stages.decode import decode
from ..stages.encode import encode
from ..stages.prompt_check import prompt_warnings
from ..stages.sample import plan_sample, sample
from .inputs import ReadsNegative, guidance_input, negative_input, pipeline_input, seed_input, steps_input
from .sockets import CATEGORY

_log = logging.getLogger(__name__)


def warnings_ui(loaded: LoadedPipeline, warnings: Sequence[str] = ()) -> dict[str, list[str]] | None:
    """``warnings``, and those of the stage that just ran, for the job's answer and as text on the node."""
    return told_ui([*warnings, *loaded.take_warnings()])


def told_ui(warnings: list[str]) -> dict[str, list[str]] | None:
    """``warnings`` for the job's answer and as text on the node, where there are any."""
    return {"warnings": warnings, "text": warnings} if warnings else None


class EncodePrompt(io.ComfyNode):
    """Encode Prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxEncodePrompt",
            display_name="Encode Prompt",
            category=CATEGORY,
            description="Turns a text into conditioning, with the model's own text encoders.",
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
            outputs=[io.Conditioning.Output("conditioning", display_name="conditioning", tooltip="The encoded text.")],
        )

    @classmethod
    def execute(cls, pipeline: PipelineHandle, text: str) -> io.NodeOutput:
        loaded = borrow(pipeline, NodeReporter())
        warnings = prompt_warnings(loaded, text)
        for warning in warnings:
            _log.warning("NeuroLux: %s", warning)
        return io.NodeOutput(encode(loaded, text), ui=warnings_ui(loaded, warnings))


class Sample(ReadsNegative):
    """Sample."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxSample",
            display_name="Sample",
            category=CATEGORY,
            description="Makes the image, as a latent. Shows progress and previews, and stops when interrupted.",
            inputs=[
                pipeline_input(),
                io.Conditioning.Input("positive", tooltip="What the image shows."),
                io.Latent.Input("latent", tooltip="What to begin with: an Empty Latent, or what Encode Image made."),
                seed_input("The same seed makes the same image. Image i of a batch uses seed + i."),
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
                        "That share of the steps is run. An Empty Latent needs 1."
                    ),
                ),
            ],
            outputs=[io.Latent.Output("samples", display_name="latent", tooltip="The image before decoding.")],
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
        request = plan_sample(pipeline.model, pipeline.spec.variant, latent, seed, steps, guidance, strength)
        loaded = borrow(pipeline, NodeReporter())
        samples = sample(loaded, request, positive, negative)
        return io.NodeOutput({"samples": samples}, ui=warnings_ui(loaded))


class Decode(io.ComfyNode):
    """Decode."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxDecode",
            display_name="Decode",
            category=CATEGORY,
            description="Turns a latent into images, with the model's own VAE.",
            inputs=[pipeline_input(), io.Latent.Input("latent", tooltip="What Sample made.")],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The images.")],
        )

    @classmethod
    def execute(cls, pipeline: PipelineHandle, latent: dict[str, Any]) -> io.NodeOutput:
        loaded = borrow(pipeline, NodeReporter())
        return io.NodeOutput(decode(loaded, latent["samples"]), ui=warnings_ui(loaded))
