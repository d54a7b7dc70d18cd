"""Inputs that several nodes share, with the same limits and defaults on each."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...loading.handle import PipelineHandle
from ...stages.sample import needs_negative
from .sockets import LARGEST_SEED, PipelineType

LARGEST_SIDE = 16384
MOST_STEPS = 1000
MOST_AT_ONCE = 4096
NOT_LINKED = object()
"""ComfyUI passes None for a lazy input that is linked and not evaluated, and nothing for one that is not linked."""


def pipeline_input(tooltip: str = "The loaded model.") -> io.Custom.Input:
    """The pipeline socket."""
    return PipelineType.Input("pipeline", tooltip=tooltip)


def seed_input(tooltip: str, name: str = "seed") -> io.Int.Input:
    """The seed; the editor can change it after each run."""
    return io.Int.Input(name, default=0, min=0, max=LARGEST_SEED, control_after_generate=True, tooltip=tooltip)


def steps_input(whose: str = "the model's") -> io.Int.Input:
    """Denoising steps. 0 means the default of what ``whose`` names."""
    return io.Int.Input("steps", default=0, min=0, max=MOST_STEPS, tooltip=f"Denoising steps. 0: {whose} default.")


def guidance_input(whose: str = "the model's") -> io.Float.Input:
    """Guidance scale. -1 means the default of what ``whose`` names."""
    return io.Float.Input(
        "guidance",
        default=-1.0,
        min=-1.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip=f"How closely to follow the prompt. -1: {whose} default.",
    )


def side_input(name: str, tooltip: str, most: int = LARGEST_SIDE) -> io.Int.Input:
    """A length in pixels, a multiple of 16. 0 means a length that the tooltip names."""
    return io.Int.Input(name, default=0, min=0, max=most, step=16, tooltip=tooltip)


def size_inputs(tooltip: str = "Pixels, a multiple of 16. 0: the model's default.") -> list[io.Input]:
    """Width and height."""
    return [side_input("width", tooltip), side_input("height", tooltip)]


def batch_input(tooltip: str) -> io.Int.Input:
    """How many images are made in one run."""
    return io.Int.Input("batch_size", default=1, min=1, max=MOST_AT_ONCE, tooltip=tooltip)


def negative_input(
    tooltip: str = "What the image should not show. Only models with classifier-free guidance use it, such as SDXL.",
) -> io.Conditioning.Input:
    """The negative prompt, evaluated only where it has an effect: for nodes that are ``ReadsNegative``."""
    return io.Conditioning.Input("negative", optional=True, lazy=True, tooltip=tooltip)


class ReadsNegative(io.ComfyNode):
    """What nodes with a negative prompt have in common."""

    @classmethod
    def check_lazy_status(
        cls, pipeline: PipelineHandle, guidance: float, negative: Any = NOT_LINKED, **_: object
    ) -> list[str]:
        """Ask for the negative prompt only if it has an effect. ComfyUI fails if an unlinked input is asked for."""
        return ["negative"] if negative is None and needs_negative(pipeline.model, guidance) else []
