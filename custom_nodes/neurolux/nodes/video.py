"""Nodes that make a video: Apply Motion, Sample Video, and what a request gets of it."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

from ..adapters.borrow import borrow
from ..errors import InvalidParameter
from ..library.motions import AUTO, find_motion, motion_key, motion_names
from ..loading.handle import PipelineHandle
from ..loading.node_progress import NodeReporter
from ..stages.video import plan_video, sample_video
from .adapters import pipeline_output
from .inputs import (
    NOT_LINKED,
    ReadsNegative,
    guidance_input,
    negative_input,
    pipeline_input,
    seed_input,
    steps_input,
)
from .result import metadata_of, to_images
from .sockets import CATEGORY
from .stages import warnings_ui

VIDEO = f"{CATEGORY}/video"
MOST_FRAMES = 128
FORMATS = ("mp4", "webp", "mp4 and webp")


class ApplyMotion(io.ComfyNode):
    """Apply Motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxApplyMotion",
            display_name="Apply Motion",
            category=VIDEO,
            description="Lets a Stable Diffusion 1.5 or SDXL model draw videos (AnimateDiff).",
            inputs=[
                pipeline_input(),
                io.Combo.Input(
                    "motion",
                    options=motion_names(),
                    default=AUTO,
                    tooltip=(
                        "A motion adapter: downloaded on first use, or a file in models/animatediff_models/. auto: the "
                        "one for this model."
                    ),
                ),
            ],
            outputs=[pipeline_output("The pipeline, for Encode Prompt, Sample Video and Decode.")],
        )

    @classmethod
    def validate_inputs(cls, motion: str) -> bool:
        """Leave the name to ``execute``: its error says which there are."""
        return True

    @classmethod
    def fingerprint_inputs(cls, motion: str | None = None, **_: object) -> str:
        return motion_key(motion or "")

    @classmethod
    def execute(cls, pipeline: PipelineHandle, motion: str) -> io.NodeOutput:
        return io.NodeOutput(replace(pipeline, motion=find_motion(motion, pipeline, NodeReporter())))


class SampleVideo(ReadsNegative):
    """Sample Video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxSampleVideo",
            display_name="Sample Video",
            category=VIDEO,
            description="Makes the frames of a video, as latents. The preview shows the middle one.",
            inputs=[
                pipeline_input("The loaded model, with Apply Motion."),
                io.Conditioning.Input("positive", tooltip="What the video shows."),
                io.Latent.Input("latent", tooltip="Width and height: an Empty Latent."),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=MOST_FRAMES,
                    tooltip="How many images. Adapters are made for 16, and bear up to 32.",
                ),
                seed_input("The same seed makes the same video."),
                steps_input("the adapter's"),
                guidance_input("the adapter's"),
                negative_input("What the video should not show. Only read with a guidance above 1."),
            ],
            outputs=[io.Latent.Output("samples", display_name="latent", tooltip="The frames before decoding.")],
        )

    @classmethod
    def check_lazy_status(
        cls, pipeline: PipelineHandle, guidance: float, negative: Any = NOT_LINKED, **_: object
    ) -> list[str]:
        """As the other nodes', with the adapter's own guidance where none is given."""
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
        loaded = borrow(pipeline, NodeReporter())
        samples = sample_video(loaded, request, positive, negative)
        return io.NodeOutput({"samples": samples}, ui=warnings_ui(loaded))


class VideoResult(io.ComfyNode):
    """Video Result."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxVideoResult",
            display_name="Video Result",
            category=VIDEO,
            description="What a request to this graph gets back: the images as one video. Saves it with the graph.",
            inputs=[
                io.Image.Input("images", tooltip="The frames, in order."),
                io.String.Input("name", default="video", tooltip="The result's name in the response."),
                io.Float.Input(
                    "fps", default=8.0, min=1.0, max=120.0, step=0.5, tooltip="Frames a second. AnimateDiff: 8."
                ),
                io.Combo.Input(
                    "video_format",
                    options=list(FORMATS),
                    default=FORMATS[0],
                    tooltip="mp4 (H.264) plays everywhere; webp is an animated image that a web page shows as such.",
                ),
                io.Int.Input("quality", default=90, min=1, max=100, tooltip="100 is best, and largest."),
                io.String.Input("filename_prefix", default="NeuroLux", tooltip="Start of the file's name."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> str:
        """Never cached: every job has a file of its own."""
        return uuid.uuid4().hex

    @classmethod
    def execute(
        cls, images: torch.Tensor, name: str, fps: float, video_format: str, quality: int, filename_prefix: str
    ) -> io.NodeOutput:
        from ..images.video_file import write_mp4, write_webp

        if video_format not in FORMATS:
            raise InvalidParameter(
                "video_format", f"video_format {video_format!r} is not known; use {', '.join(FORMATS)}"
            )
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), images.shape[2], images.shape[1]
        )
        metadata = metadata_of(cls.hidden)
        frames, saved = to_images(images), []
        for suffix in video_format.split(" and "):
            file = f"{stem}_{counter:05}_.{suffix}"
            path = Path(folder) / file
            if suffix == "mp4":
                graphs = {"prompt": metadata.prompt, **metadata.extra} if metadata.prompt is not None else {}
                write_mp4(frames, path, fps, quality, graphs)
            else:
                write_webp(frames, path, fps, quality, metadata.exif())
            saved.append({"filename": file, "subfolder": subfolder, "type": "output"})
        return io.NodeOutput(ui={"images": saved, "animated": (True,)})
