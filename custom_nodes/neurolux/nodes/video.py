"""Nodes that make the frames of a video: Apply Motion and Sample Video. Video Result saves them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..adapters.borrow import borrow
from ..library.motions import AUTO, find_motion, motion_key, motion_names
from ..loading.handle import PipelineHandle
from ..loading.node_progress import NodeReporter
from ..stages.prompts.conditioning import told_by
from ..stages.video import plan_video, sample_video
from .schema.inputs import (
    NOT_LINKED,
    ReadsNegative,
    guidance_input,
    negative_input,
    pipeline_input,
    seed_input,
    steps_input,
)
from .schema.outputs import pipeline_output, stage_warnings_ui
from .schema.sockets import CATEGORY

VIDEO = f"{CATEGORY}/video"
MOST_FRAMES = 128


class ApplyMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxApplyMotion",
            display_name="Apply Motion",
            category=VIDEO,
            description="Lets a Stable Diffusion 1.5 or SDXL model generate videos (AnimateDiff).",
            inputs=[
                pipeline_input(),
                io.Combo.Input(
                    "motion",
                    options=motion_names(),
                    default=AUTO,
                    tooltip=(
                        "A motion adapter from the catalog (downloaded on first use), or a file in "
                        "models/animatediff_models/. auto: the one for this model."
                    ),
                ),
            ],
            outputs=[pipeline_output("The pipeline, for Encode Prompt, Sample Video and Decode.")],
        )

    @classmethod
    def validate_inputs(cls, motion: str) -> bool:
        """Leave the name to ``execute``: its error lists the adapters."""
        return True

    @classmethod
    def fingerprint_inputs(cls, motion: str | None = None, **_: object) -> str:
        return motion_key(motion or "")

    @classmethod
    def execute(cls, pipeline: PipelineHandle, motion: str) -> io.NodeOutput:
        return io.NodeOutput(replace(pipeline, motion=find_motion(motion, pipeline, NodeReporter())))


class SampleVideo(ReadsNegative):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxSampleVideo",
            display_name="Sample Video",
            category=VIDEO,
            description="Generates the frames of a video as latents. The preview shows the middle frame.",
            inputs=[
                pipeline_input("The loaded model, with Apply Motion."),
                io.Conditioning.Input("positive", tooltip="The encoded prompt."),
                io.Latent.Input("latent", tooltip="An Empty Latent, for its width and height."),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=MOST_FRAMES,
                    tooltip="Number of frames. Adapters are trained on 16 and work up to 32.",
                ),
                seed_input("The same seed gives the same video."),
                steps_input("the adapter's"),
                guidance_input("the adapter's"),
                negative_input("What the video should not show. Only used with a guidance above 1."),
            ],
            outputs=[io.Latent.Output("samples", display_name="latent", tooltip="The frames as latents, for Decode.")],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def check_lazy_status(
        cls, pipeline: PipelineHandle, guidance: float, negative: Any = NOT_LINKED, **_: object
    ) -> list[str]:
        """As on the other nodes, with the adapter's own guidance if none is given."""
        if guidance < 0 and pipeline.motion is not None:
            guidance = pipeline.motion.guidance
        return super().check_lazy_status(pipeline, guidance, negative)

    @classmethod
    def execute(
        cls,
        pipeline: PipelineHandle,
        positive: Any,
        latent: dict[str, Any],
        frames: int,
        seed: int,
        steps: int,
        guidance: float,
        negative: Any = None,
    ) -> io.NodeOutput:
        request = plan_video(pipeline, latent, frames, seed, steps, guidance)
        loaded = borrow(pipeline.for_steps(request.frame.steps), NodeReporter())
        samples = sample_video(loaded, request, positive, negative)
        ui = stage_warnings_ui(cls, loaded, told_by(positive, negative), lazy=negative is not None)
        return io.NodeOutput({"samples": samples}, ui=ui)
