"""Stable Diffusion 1.5, from diffusers folders."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..catalog.limits import Defaults, Limits
from ..planning.records import FamilyCosts
from ..weights.stamps import Shapes
from .parts import unet
from .parts.autoencoder import VAE, scaled_from_raw, scaled_to_raw
from .parts.clip import CLIP_L
from .spec import (
    Component,
    Config,
    Detected,
    Encoding,
    FamilySpec,
    LatentSpace,
    Loras,
    ModelFacts,
    Part,
    PipelineClass,
)

if TYPE_CHECKING:
    import torch

SCALING = 0.18215
TEXT_WIDTH = 768

UNET = Part(
    name="sd15-unet",
    title="Stable Diffusion 1.5 UNet",
    empty=unet.empty,
    config=unet.config,
    blocks=unet.UNET_BLOCKS,
)


def encode(pipe: Any, text: str, device: Any, tokens: int) -> dict[str, torch.Tensor]:
    """The embeddings of all tokens, the only input."""
    embeds, _ = pipe.encode_prompt(text, device, 1, False)
    return {"prompt_embeds": embeds}


def folder(read: Callable[[str], dict[str, Any]]) -> ModelFacts | None:
    """A diffusers folder of version 1.5; None for version 2, which has another text encoder."""
    if read("unet/config.json").get("use_linear_projection"):
        return None
    side = unet.side_of(read)
    return ModelFacts(Defaults(side, side, 30, 7.5), Limits(negative_prompt=True), max_sequence_length=77)


def detect_lora(header: Shapes) -> Detected | None:
    """Recognize a LoRA for a UNet whose text has the width of CLIP-L."""
    widths = unet.lora_widths(header)
    return Detected("sd15") if widths is not None and TEXT_WIDTH in widths else None


def detect_control(header: Shapes) -> Detected | None:
    """Recognize a ControlNet, with diffusers' or the original names, without the extra embeddings of SDXL."""
    original = "control_model.time_embed.0.weight" in header and "control_model.label_emb.0.0.weight" not in header
    named = "controlnet_cond_embedding.conv_in.weight" in header and "add_embedding.linear_1.weight" not in header
    return Detected("sd15") if original or named else None


def control_folder(config: Config) -> bool:
    """Whether the configuration is that of a ControlNet for 1.5."""
    return config.get("_class_name") == "ControlNetModel" and config.get("addition_embed_type") != "text_time"


FAMILY = FamilySpec(
    name="sd15",
    title="Stable Diffusion 1.5",
    components={
        "text_encoder": Component(CLIP_L),
        "unet": Component(UNET),
        "vae": Component(VAE, {"scaling_factor": SCALING, "shift_factor": None}),
    },
    denoiser="unet",
    costs=FamilyCosts(
        denoiser="unet",
        sample_values=unet.attending_values,
        step_operations=unet.step_operations,
        compressible=frozenset({"unet"}),
        fp16_without_bf16=True,
    ),
    pipelines={
        ("text-to-image", None): PipelineClass("StableDiffusionPipeline"),
        ("video", None): PipelineClass("AnimateDiffPipeline"),
    },
    encoding=Encoding(encode, width="cross_attention_dim", cross_attends=True, weighs_tokens=True),
    latent=LatentSpace(to_raw=scaled_to_raw, from_raw=scaled_from_raw, comfy_format="SD15", channels=4),
    folders={"StableDiffusionPipeline": folder},
    running_steps=unet.running_steps,
    pipeline_options=lambda index: {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    },
    loras=Loras(detect_lora, original_names=unet.original_names),
    detect_control=detect_control,
    control_folder=control_folder,
)
