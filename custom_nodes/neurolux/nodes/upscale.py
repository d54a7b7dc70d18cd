"""Nodes that make an image larger and then add detail: Upscale Image, Refine in Tiles."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..adapters.borrow import borrow
from ..images.pixels import unused_alpha
from ..loading.handle import PipelineHandle
from ..loading.node_progress import NodeReporter
from ..stages.prompts.conditioning import told_by
from ..stages.refine import RefineRequest, refine
from ..stages.upscale import AUTO, upscale, upscaler_names
from .schema.inputs import (
    ReadsNegative,
    guidance_input,
    negative_input,
    pipeline_input,
    seed_input,
    side_input,
    steps_input,
)
from .schema.outputs import stage_warnings_ui
from .schema.sockets import CATEGORY

UPSCALE = f"{CATEGORY}/upscale"
MOST = 8.0


class UpscaleImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxUpscaleImage",
            display_name="Upscale Image",
            category=UPSCALE,
            description="Enlarges an image with an upscale model from models/upscale_models/, or with Lanczos.",
            inputs=[
                io.Image.Input("image", tooltip="The image to enlarge."),
                io.Float.Input(
                    "upscale_by",
                    default=2.0,
                    min=1.0,
                    max=MOST,
                    step=0.1,
                    round=0.001,
                    tooltip="Factor for width and height.",
                ),
                io.Combo.Input(
                    "upscaler",
                    options=upscaler_names(),
                    default=AUTO,
                    tooltip=(
                        "A file in models/upscale_models/, or lanczos. auto: the first file, or lanczos if there is "
                        "none. The model's output is resized to the requested size."
                    ),
                ),
            ],
            outputs=[io.Image.Output("upscaled", display_name="image", tooltip="The enlarged image.")],
        )

    @classmethod
    def validate_inputs(cls, upscaler: str) -> bool:
        """Leave the name to ``execute``: its error lists the files that exist."""
        return True

    @classmethod
    def execute(cls, image: torch.Tensor, upscale_by: float, upscaler: str) -> io.NodeOutput:
        return io.NodeOutput(upscale(image, upscale_by, upscaler))


class RefineInTiles(ReadsNegative):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxRefineInTiles",
            display_name="Refine in Tiles",
            category=UPSCALE,
            description=(
                "Redraws an image slightly, tile by tile: a large image gains detail with the memory use of a small "
                "one. Tiles overlap and blend into each other. With a ControlNet, each tile follows its part of the "
                "control image."
            ),
            inputs=[
                pipeline_input(),
                io.Image.Input("image", tooltip="The image, already at its final size."),
                io.Conditioning.Input("positive", tooltip="The encoded prompt, used for every tile."),
                io.Float.Input(
                    "strength",
                    default=0.3,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="How much is redrawn. Above 0.5 a tile may add objects of its own.",
                ),
                side_input("tile", "Side of a tile in pixels. 0: the model's default.", most=4096),
                io.Int.Input(
                    "overlap", default=64, min=0, max=2048, tooltip="Pixels over which neighbouring tiles blend."
                ),
                seed_input("The same seed gives the same image. Tile t of image i uses seed + i + t."),
                steps_input(),
                guidance_input(),
                negative_input(),
            ],
            outputs=[io.Image.Output("refined", display_name="image", tooltip="The refined image.")],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls,
        pipeline: PipelineHandle,
        image: torch.Tensor,
        positive: Any,
        strength: float,
        tile: int,
        overlap: int,
        seed: int,
        steps: int,
        guidance: float,
        negative: Any = None,
    ) -> io.NodeOutput:
        loaded = borrow(pipeline.for_steps(steps), NodeReporter())
        request = RefineRequest(strength, seed, steps, guidance, tile, overlap)
        made = refine(loaded, image, positive, negative, request)
        warnings = [*told_by(positive, negative), *unused_alpha(image)]
        return io.NodeOutput(made, ui=stage_warnings_ui(cls, loaded, warnings, lazy=negative is not None))
