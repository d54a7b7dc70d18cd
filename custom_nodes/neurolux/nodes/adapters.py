"""Nodes that put a LoRA or a ControlNet on a loaded pipeline. They give a new handle and leave the old one as it is."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..adapter_folders import adapter_names, find_adapter, stamp_key
from ..errors import InvalidParameter
from ..pipelines.adapters import STRENGTH_LIMIT, AppliedLora, check_lora, with_lora
from ..pipelines.controlnet import AUTO_MODE, MODE_CHOICES, make_control
from ..pipelines.registry import PipelineHandle
from .sockets import CATEGORY, PipelineType

ADAPTERS = f"{CATEGORY}/adapters"


def pipeline_input() -> io.Custom.Input:
    """The pipeline socket."""
    return PipelineType.Input("pipeline", tooltip="The loaded model, or one that something was applied to already.")


def pipeline_output(tooltip: str) -> io.Custom.Output:
    """The pipeline socket."""
    return PipelineType.Output("applied", display_name="pipeline", tooltip=tooltip)


def share_input(name: str, default: float, tooltip: str, *, most: float = 1.0, step: float = 0.01) -> io.Float.Input:
    """A slider from 0 up."""
    return io.Float.Input(name, default=default, min=0.0, max=most, step=step, round=0.001, tooltip=tooltip)


class ApplyLora(io.ComfyNode):
    """Apply LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxApplyLora",
            display_name="Apply LoRA",
            category=ADAPTERS,
            description=(
                "Adds a LoRA to a pipeline. Chain it for several. The model's own weights stay as they are, so a "
                "change of strength loads nothing again."
            ),
            inputs=[
                pipeline_input(),
                io.Combo.Input(
                    "lora",
                    options=adapter_names("lora"),
                    tooltip="A .safetensors file in models/loras/ that was trained on this family of models.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-STRENGTH_LIMIT,
                    max=STRENGTH_LIMIT,
                    step=0.05,
                    round=0.001,
                    tooltip="How strongly it acts. 0: not at all. Negative: the opposite way.",
                ),
                io.Float.Input(
                    "text_encoder_strength",
                    optional=True,
                    force_input=True,
                    min=-STRENGTH_LIMIT,
                    max=STRENGTH_LIMIT,
                    tooltip=(
                        "Strength in the text encoders, for a LoRA that trained them too. Not linked: the same as "
                        "strength. Takes effect where Encode Prompt gets this pipeline."
                    ),
                ),
            ],
            outputs=[pipeline_output("The pipeline with the LoRA.")],
        )

    @classmethod
    def validate_inputs(cls, lora: str) -> bool:
        """Leave the name to ``execute``: its error says which files there are."""
        return True

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = None, **_: object) -> str:
        return stamp_key("lora", lora or "")

    @classmethod
    def execute(
        cls, pipeline: PipelineHandle, lora: str, strength: float, text_encoder_strength: float | None = None
    ) -> io.NodeOutput:
        text_strength = strength if text_encoder_strength is None else float(text_encoder_strength)
        for name, value in (("strength", strength), ("text_encoder_strength", text_strength)):
            if not abs(value) <= STRENGTH_LIMIT:
                raise InvalidParameter(name, f"{name} {value:g} is outside -{STRENGTH_LIMIT:g} to {STRENGTH_LIMIT:g}")
        file = find_adapter("lora", lora)
        check_lora(pipeline.model, file)
        applied = with_lora(pipeline.adapters, AppliedLora(file, strength, text_strength))
        handle = replace(pipeline, adapters=applied)
        handle.loaded()  # here, so that a file that does not fit is this node's error
        return io.NodeOutput(handle)


class ApplyControlNet(io.ComfyNode):
    """Apply ControlNet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxApplyControlNet",
            display_name="Apply ControlNet",
            category=ADAPTERS,
            description="Lets a picture (edges, depth, a pose) guide what Sample makes. Chain it for several.",
            inputs=[
                pipeline_input(),
                io.Combo.Input(
                    "controlnet",
                    options=adapter_names("controlnet"),
                    tooltip="A file or a diffusers folder in models/controlnet/ for this family of models.",
                ),
                io.Image.Input(
                    "image",
                    tooltip=(
                        "The picture to follow, as the ControlNet wants it. It is cut to the result's shape around the "
                        "middle, then resized. Picture i of a batch follows image i."
                    ),
                ),
                share_input("strength", 1.0, "How strongly it guides. 0: not at all.", most=2.0, step=0.05),
                share_input("start", 0.0, "Share of the steps after which it begins to guide."),
                share_input("end", 1.0, "Share of the steps after which it no longer guides."),
                io.Combo.Input(
                    "mode",
                    options=list(MODE_CHOICES),
                    default=AUTO_MODE,
                    tooltip="For a union ControlNet: what the picture shows. auto: for all others.",
                ),
            ],
            outputs=[pipeline_output("The pipeline with the ControlNet, for Sample.")],
        )

    @classmethod
    def validate_inputs(cls, controlnet: str) -> bool:
        """Leave the name to ``execute``: its error says which files there are."""
        return True

    @classmethod
    def fingerprint_inputs(cls, controlnet: str | None = None, **_: object) -> str:
        return stamp_key("controlnet", controlnet or "")

    @classmethod
    def execute(
        cls,
        pipeline: PipelineHandle,
        controlnet: str,
        image: torch.Tensor,
        strength: float,
        start: float,
        end: float,
        mode: str,
    ) -> io.NodeOutput:
        file = find_adapter("controlnet", controlnet)
        control = make_control(pipeline.model, file, image, strength, start, end, mode)
        if not strength:
            return io.NodeOutput(pipeline)
        return io.NodeOutput(replace(pipeline, controls=(*pipeline.controls, control)))
