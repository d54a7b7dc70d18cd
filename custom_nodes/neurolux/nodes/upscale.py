"""Nodes that make a picture larger, and then sharper: Upscale Picture, Refine in Tiles."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..pipelines.node_progress import NodeReporter
from ..pipelines.refine import RefineRequest, refine
from ..pipelines.registry import PipelineHandle
from ..pipelines.sample import needs_negative
from ..pipelines.upscale import AUTO, upscale, upscaler_names
from .sockets import CATEGORY, LARGEST_SEED, PipelineType
from .stages import NOT_LINKED, warnings_ui

UPSCALE = f"{CATEGORY}/upscale"
MOST = 8.0


class UpscalePicture(io.ComfyNode):
    """Upscale Picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxUpscalePicture",
            display_name="Upscale Picture",
            category=UPSCALE,
            description="Makes a picture larger, with an upscale model of models/upscale_models/ or plainly (Lanczos).",
            inputs=[
                io.Image.Input("image", tooltip="The picture."),
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
            outputs=[io.Image.Output("upscaled", display_name="image", tooltip="The larger picture.")],
        )

    @classmethod
    def validate_inputs(cls, upscaler: str) -> bool:
        """Leave the name to ``execute``: its error says which files there are."""
        return True

    @classmethod
    def execute(cls, image: torch.Tensor, upscale_by: float, upscaler: str) -> io.NodeOutput:
        return io.NodeOutput(upscale(image, upscale_by, upscaler))


class RefineInTiles(io.ComfyNode):
    """Refine in Tiles."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxRefineInTiles",
            display_name="Refine in Tiles",
            category=UPSCALE,
            description=(
                "Redraws a picture a little, tile by tile, so that a large one gets detail with the memory of a small "
                "one. The tiles overlap and fade into each other."
            ),
            inputs=[
                PipelineType.Input("pipeline", tooltip="The loaded model."),
                io.Image.Input("image", tooltip="The picture, already at its size."),
                io.Conditioning.Input("positive", tooltip="What the picture shows; every tile gets the same text."),
                io.Float.Input(
                    "strength",
                    default=0.3,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="How much is redrawn. Above 0.5 a tile may invent things of its own.",
                ),
                io.Int.Input(
                    "tile",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    tooltip="A tile's side in pixels. 0: the model's default.",
                ),
                io.Int.Input("overlap", default=64, min=0, max=2048, tooltip="Pixels in which two tiles fade over."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=LARGEST_SEED,
                    control_after_generate=True,
                    tooltip="The same seed makes the same picture. Tile t of picture i uses seed + i + t.",
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
            ],
            outputs=[io.Image.Output("refined", display_name="image", tooltip="The refined picture.")],
        )

    @classmethod
    def check_lazy_status(
        cls, pipeline: PipelineHandle, guidance: float, negative: Any = NOT_LINKED, **_: object
    ) -> list[str]:
        """As Sample's."""
        return ["negative"] if negative is None and needs_negative(pipeline.model, guidance) else []

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
        loaded = pipeline.loaded(NodeReporter())
        request = RefineRequest(strength, seed, steps, guidance, tile, overlap)
        made = refine(loaded, pipeline.spec, image, positive, negative, request)
        return io.NodeOutput(made, ui=warnings_ui(loaded))
