"""Nodes that make an image larger, and then sharper: Upscale Image, Refine in Tiles."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..adapters.borrow import borrow
from ..loading.handle import PipelineHandle
from ..loading.node_progress import NodeReporter
from ..stages.refine import RefineRequest, refine
from ..stages.upscale import AUTO, upscale, upscaler_names
from .inputs import (
    ReadsNegative,
    guidance_input,
    negative_input,
    pipeline_input,
    seed_input,
    side_input,
    steps_input,
)
from .sockets import CATEGORY
from .stages import warnings_ui

UPSCALE = f"{CATEGORY}/upscale"
MOST = 8.0


class UpscaleImage(io.ComfyNode):
    """Upscale Image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxUpscaleImage",
            display_name="Upscale Image",
            category=UPSCALE,
            description="Makes an image larger, with an upscale model of models/upscale_models/ or plainly (Lanczos).",
            inputs=[
                io.Image.Input("image", tooltip="The image."),
                io.Float.Input(
                    "upscale_by",
                    default=2.0,
                    min=1.0,
                    max=MOST,
                    step=0.1,
                    round=0.001,
                    tooltip="How many times as wide and as high.",
                ),
                io.Combo.Input(
                    "upscaler",
                    options=upscaler_names(),
                    default=AUTO,
                    tooltip=(
                        "A file in models/upscale_models/, or lanczos. auto: the first file there is, else lanczos. "
                        "What a model makes is resized to the size asked for."
                    ),
                ),
            ],
            outputs=[io.Image.Output("upscaled", display_name="image", tooltip="The larger image.")],
        )

    @classmethod
    def validate_inputs(cls, upscaler: str) -> bool:
        """Leave the name to ``execute``: its error says which files there are."""
        return True

    @classmethod
    def execute(cls, image: torch.Tensor, upscale_by: float, upscaler: str) -> io.NodeOutput:
        return io.NodeOutput(upscale(image, upscale_by, upscaler))


class RefineInTiles(ReadsNegative):
    """Refine in Tiles."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxRefineInTiles",
            display_name="Refine in Tiles",
            category=UPSCALE,
            description=(
                "Redraws an image a little, tile by tile, so that a large one gets detail with the memory of a small "
                "one. The tiles overlap and fade into each other. Under a ControlNet each follows its part of the "
                "control image."
            ),
            inputs=[
                pipeline_input(),
                io.Image.Input("image", tooltip="The image, already at its size."),
                io.Conditioning.Input("positive", tooltip="What the image shows; every tile gets the same text."),
                io.Float.Input(
                    "strength",
                    default=0.3,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="How much is redrawn. Above 0.5 a tile may invent things of its own.",
                ),
                side_input("tile", "A tile's side in pixels. 0: the model's default.", most=4096),
                io.Int.Input("overlap", default=64, min=0, max=2048, tooltip="Pixels in which two tiles fade over."),
                seed_input("The same seed makes the same image. Tile t of image i uses seed + i + t."),
                steps_input(),
                guidance_input(),
                negative_input(),
            ],
            outputs=[io.Image.Output("refined", display_name="image", tooltip="The refined image.")],
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
        loaded = borrow(pipeline, NodeReporter())
        request = RefineRequest(strength, seed, steps, guidance, tile, overlap)
        made = refine(loaded, image, positive, negative, request)
        return io.NodeOutput(made, ui=warnings_ui(loaded))
