"""Nodes that apply a LoRA or a ControlNet. They return a new pipeline handle and leave the one they got unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from comfy_api.latest import io

from ..adapters.borrow import borrow
from ..adapters.control.applied import AUTO_MODE, check_model, make_control, mode_choices
from ..adapters.lora.applied import check_lora, notes, with_lora
from ..adapters.lora.lists import NO_LORA, STRENGTH_LIMIT, read_list
from ..errors import InvalidParameter
from ..images.pixels import unused_alpha
from ..library.adapter_folders import adapter_names, find_adapter, stamp_key
from ..library.controlnets import AUTO, controlnet_key, controlnet_names, find_controlnet
from ..loading.handle import AppliedLora, PipelineHandle
from ..loading.node_progress import NodeReporter
from .schema.inputs import pipeline_input
from .schema.outputs import pipeline_output, warnings_ui
from .schema.sockets import CATEGORY

ADAPTERS = f"{CATEGORY}/adapters"
PIPELINE_TOOLTIP = "The loaded model, or the output of another Apply node."


def share_input(name: str, default: float, tooltip: str, *, most: float = 1.0, step: float = 0.01) -> io.Float.Input:
    """A slider that starts at 0."""
    return io.Float.Input(name, default=default, min=0.0, max=most, step=step, round=0.001, tooltip=tooltip)


class ApplyLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxApplyLora",
            display_name="Apply LoRA",
            category=ADAPTERS,
            description=(
                "Applies a LoRA to a pipeline. Chain the node to apply several. The model's own weights are not "
                "modified, so changing the strength reloads nothing."
            ),
            inputs=[
                pipeline_input(PIPELINE_TOOLTIP),
                io.Combo.Input(
                    "lora",
                    options=[NO_LORA, *adapter_names("lora")],
                    default=NO_LORA,
                    tooltip=(
                        "A .safetensors file in models/loras/, trained for this model family. none: leave the "
                        "pipeline unchanged."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-STRENGTH_LIMIT,
                    max=STRENGTH_LIMIT,
                    step=0.05,
                    round=0.001,
                    tooltip="Strength of the LoRA. 0: no effect. Negative values reverse the effect.",
                ),
                io.Float.Input(
                    "text_encoder_strength",
                    optional=True,
                    force_input=True,
                    min=-STRENGTH_LIMIT,
                    max=STRENGTH_LIMIT,
                    tooltip=(
                        "Strength in the text encoders, for a LoRA that was trained on them too. Not linked: same as "
                        "strength. Takes effect if Encode Prompt gets this pipeline."
                    ),
                ),
            ],
            outputs=[pipeline_output("The pipeline with the LoRA applied.")],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(cls, lora: str) -> bool:
        """Leave the name to ``execute``: its error lists the files that exist."""
        return True

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = None, **_: object) -> str:
        return stamp_key("lora", lora or "")

    @classmethod
    def execute(
        cls, pipeline: PipelineHandle, lora: str, strength: float, text_encoder_strength: float | None = None
    ) -> io.NodeOutput:
        if lora == NO_LORA:
            return io.NodeOutput(pipeline)
        text_strength = strength if text_encoder_strength is None else float(text_encoder_strength)
        for name, value in (("strength", strength), ("text_encoder_strength", text_strength)):
            if not abs(value) <= STRENGTH_LIMIT:
                raise InvalidParameter(name, f"{name} {value:g} is outside -{STRENGTH_LIMIT:g} to {STRENGTH_LIMIT:g}")
        return applied_output(cls, pipeline, with_loras(pipeline, [(lora, strength, text_strength)]))


class ApplyLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxApplyLoras",
            display_name="Apply LoRAs",
            category=ADAPTERS,
            description="Applies any number of LoRAs to a pipeline, from a list of file names and strengths.",
            inputs=[
                pipeline_input(PIPELINE_TOOLTIP),
                io.String.Input(
                    "loras",
                    multiline=True,
                    default="",
                    tooltip=(
                        "One LoRA per line: the file name in models/loras/, a colon and the strength, such as "
                        "watercolour.safetensors: 0.8. Without a strength it is 1. Lines that start with # are "
                        "ignored. Empty: no LoRA."
                    ),
                ),
            ],
            outputs=[pipeline_output("The pipeline with the LoRAs applied.")],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def fingerprint_inputs(cls, loras: str | None = None, **_: object) -> str:
        try:
            return "".join(stamp_key("lora", name) for name, _strength in read_list(loras or ""))
        except InvalidParameter:  # ``execute`` reports what is wrong with the list
            return ""

    @classmethod
    def execute(cls, pipeline: PipelineHandle, loras: str) -> io.NodeOutput:
        wanted = [(name, value, value) for name, value in read_list(loras)]
        return applied_output(cls, pipeline, with_loras(pipeline, wanted))


def applied_output(node: type[io.ComfyNode], before: PipelineHandle, handle: PipelineHandle) -> io.NodeOutput:
    """The pipeline, and a warning for each added LoRA of which not all layers are in use."""
    added = {lora.file for lora in handle.loras} - {lora.file for lora in before.loras}
    return io.NodeOutput(handle, ui=warnings_ui(node, notes(borrow(handle), added)))


def with_loras(pipeline: PipelineHandle, wanted: Sequence[tuple[str, float, float]]) -> PipelineHandle:
    """``pipeline`` with LoRAs (file, strength, strength in the text encoders). Raises InvalidParameter."""
    applied = pipeline.loras
    for name, strength, text_strength in wanted:
        file = find_adapter("lora", name)
        check_lora(pipeline.model, file)
        applied = with_lora(applied, AppliedLora(file, strength, text_strength))
    handle = replace(pipeline, loras=applied)
    borrow(handle)  # here, so that a file that does not fit is this node's error
    return handle


class ApplyControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxApplyControlNet",
            display_name="Apply ControlNet",
            category=ADAPTERS,
            description=(
                "Guides Sample and Refine in Tiles with a control image, such as edges, a depth map or a pose. Chain "
                "the node to combine several."
            ),
            inputs=[
                pipeline_input(PIPELINE_TOOLTIP),
                io.Combo.Input(
                    "controlnet",
                    options=controlnet_names(),
                    tooltip=(
                        "A file or a diffusers folder in models/controlnet/, or a ControlNet from the catalog "
                        "(downloaded on first use). auto: the one that fits the model and the mode."
                    ),
                ),
                io.Image.Input(
                    "image",
                    tooltip=(
                        "The control image, in the form that the ControlNet expects. It is cropped around its centre "
                        "to the shape of the result, then resized. If it has the proportions of the image that is "
                        "redrawn, the two stay aligned. Image i of a batch follows control image i."
                    ),
                ),
                share_input(
                    "strength", 1.0, "How strongly the control image guides. 0: not at all.", most=2.0, step=0.05
                ),
                share_input("start", 0.0, "Fraction of the steps after which guiding starts."),
                share_input("end", 1.0, "Fraction of the steps after which guiding ends."),
                io.Combo.Input(
                    "mode",
                    options=list(mode_choices()),
                    default=AUTO_MODE,
                    tooltip="What the control image shows. Needed for controlnet auto and for union ControlNets.",
                ),
            ],
            outputs=[pipeline_output("The pipeline with the ControlNet applied, for Sample.")],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(cls, controlnet: str) -> bool:
        """Leave the name to ``execute``: its error lists the files that exist."""
        return True

    @classmethod
    def fingerprint_inputs(cls, controlnet: str | None = None, **_: object) -> str:
        return controlnet_key(controlnet or "")

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
        if not strength:
            return io.NodeOutput(pipeline)
        check_model(pipeline.model)  # before anything is downloaded for it
        file = find_controlnet(controlnet, pipeline, mode, NodeReporter())
        control = make_control(pipeline.model, file, image, strength, start, end, mode)
        warnings = unused_alpha(image)
        warnings_ui(cls, warnings)
        chosen = [f"ControlNet {file.name}"] if controlnet == AUTO else []
        ui = {"warnings": warnings, "text": [*chosen, *warnings]} if chosen or warnings else None
        return io.NodeOutput(replace(pipeline, controls=(*pipeline.controls, control)), ui=ui)
