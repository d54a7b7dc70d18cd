"""The stages of making a picture: Encode Prompt, Sample, Decode."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..pipelines.decode import decode
from ..pipelines.encode import encode
from ..pipelines.node_progress import NodeReporter
from ..pipelines.prompt_check import prompt_warnings
from ..pipelines.registry import LoadedPipeline, PipelineHandle
from ..pipelines.sample import needs_negative, sample
from .sockets import CATEGORY, LARGEST_SEED, PipelineType

_log = logging.getLogger(__name__)
NOT_LINKED = object()
"""ComfyUI passes None for a lazy input that is linked and not evaluated, and nothing for one that is not linked."""


def warnings_ui(loaded: LoadedPipeline, warnings: Sequence[str] = ()) -> dict[str, list[str]] | None:
    """``warnings``, and those of the stage that just ran, for the job's answer and as text on the node."""
    told = [*warnings, *loaded.take_warnings()]
    return {"warnings": told, "text": told} if told else None


def pipeline_input() -> io.Custom.Input:
    """The pipeline socket."""
    return PipelineType.Input("pipeline", tooltip="The loaded model.")


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
                    tooltip="What the picture shows. For a negative prompt: what it should not show.",
                ),
            ],
            outputs=[io.Conditioning.Output("conditioning", display_name="conditioning", tooltip="The encoded text.")],
        )

    @classmethod
    def execute(cls, pipeline: PipelineHandle, text: str) -> io.NodeOutput:
        loaded = pipeline.loaded(NodeReporter())
        warnings = prompt_warnings(loaded, text)
        for warning in warnings:
            _log.warning("NeuroLux: %s", warning)
        return io.NodeOutput(encode(loaded, text), ui=warnings_ui(loaded, warnings))


class Sample(io.ComfyNode):
    """Sample."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxSample",
            display_name="Sample",
            category=CATEGORY,
            description="Makes the picture, as a latent. Shows progress and previews, and stops when interrupted.",
            inputs=[
                pipeline_input(),
                io.Conditioning.Input("positive", tooltip="What the picture shows."),
                io.Latent.Input("latent", tooltip="What to begin with: an Empty Latent, or what Encode Picture made."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=LARGEST_SEED,
                    control_after_generate=True,
                    tooltip="The same seed makes the same picture. Picture i of a batch uses seed + i.",
                ),
                io.Int.Input("steps", default=0, min=0, max=1000, tooltip="Denoising steps. 0: the model's default."),
                io.Float.Input(
                    "guidance",
                    default=-1.0,
                    min=-1.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How closely to follow the prompt. -1: the model's default.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    lazy=True,
                    tooltip="What the picture should not show. Only read by models that use it (SDXL with guidance).",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    optional=True,
                    tooltip=(
                        "How much of an encoded picture is redrawn: near 0 it stays as it is, 1 redraws everything. "
                        "That share of the steps is run. An Empty Latent needs 1."
                    ),
                ),
            ],
            outputs=[io.Latent.Output("samples", display_name="latent", tooltip="The picture before decoding.")],
        )

    @classmethod
    def check_lazy_status(
        cls, pipeline: PipelineHandle, guidance: float, negative: Any = NOT_LINKED, **_: object
    ) -> list[str]:
        """Ask for the negative prompt only if it has an effect; ComfyUI fails when an unlinked input is asked for."""
        return ["negative"] if negative is None and needs_negative(pipeline.model, guidance) else []

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
        loaded = pipeline.loaded(NodeReporter())
        samples = sample(loaded, pipeline.spec, positive, negative, latent, seed, steps, guidance, strength)
        return io.NodeOutput({"samples": samples}, ui=warnings_ui(loaded))


class Decode(io.ComfyNode):
    """Decode."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxDecode",
            display_name="Decode",
            category=CATEGORY,
            description="Turns a latent into pictures, with the model's own VAE.",
            inputs=[pipeline_input(), io.Latent.Input("latent", tooltip="What Sample made.")],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The pictures.")],
        )

    @classmethod
    def execute(cls, pipeline: PipelineHandle, latent: dict[str, Any]) -> io.NodeOutput:
        loaded = pipeline.loaded(NodeReporter())
        return io.NodeOutput(decode(loaded, latent["samples"]), ui=warnings_ui(loaded))
