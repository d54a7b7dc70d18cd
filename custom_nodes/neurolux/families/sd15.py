"""Stable Diffusion 1.5."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..catalog.limits import Defaults, Limits
from ..planning.records import FamilyCosts
from ..weights.file_kinds import TensorInfo
from ..weights.stamps import Shapes
from .parts import unet
from .parts.autoencoder import VAE, scaled_from_raw, scaled_to_raw
from .parts.clip import CLIP_L
from .parts.clip import tokenizer as clip_tokenizer
from .spec import (
    Architecture,
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
    Scheduler,
    Signature,
    SingleFiles,
)

if TYPE_CHECKING:
    import torch


SCALING = 0.18215
TEXT_WIDTH = 768
TOKENS = 77
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
"""Settings of PNDMScheduler in the published folder (scheduler/scheduler_config.json)."""
USUAL_SIDE = 512

UNET = Part(
    name="sd15-unet",
    title="Stable Diffusion 1.5 UNet",
    empty=unet.empty,
    config=unet.config,
    signatures=(  # SDXL has no attention at this place
        Signature("original", f"input_blocks.1.1.{unet.FIRST_CROSSED}", accepts=lambda info, prefix: is_own(info)),
        Signature(
            "diffusers", f"down_blocks.0.attentions.0.{unet.FIRST_CROSSED}", accepts=lambda info, prefix: is_own(info)
        ),
    ),
    renames={"original": unet.renamed_original},
    blocks=unet.UNET_BLOCKS,
)


def is_own(info: TensorInfo) -> bool:
    """Whether a UNet attends to text of another width than that of version 2."""
    return info.shape[-1] != unet.SD2_TEXT_WIDTH


def misfits(configs: Mapping[str, Config]) -> Iterator[tuple[str, int, int, str]]:
    """Compare the text encoder and the VAE with the UNet."""
    main = configs["unet"]
    if "text_encoder" in configs:
        yield "text_encoder", configs["text_encoder"]["hidden_size"], main["cross_attention_dim"], "features"
    if "vae" in configs:
        yield "vae", configs["vae"]["latent_channels"], main["out_channels"], "latent channels"


def trained_for(names: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The scheduler's settings for what a checkpoint says of its training. Raises ValueError for zero terminal SNR."""
    found = unet.trained_for(names, metadata)
    if "rescale_betas_zero_snr" in found:
        raise ValueError("it was trained to zero terminal SNR, which its scheduler (PNDM) cannot start from")
    return found


def encode(pipe: Any, text: str, device: Any, tokens: int) -> dict[str, torch.Tensor]:
    """The embeddings of all tokens, the only input."""
    embeds, _ = pipe.encode_prompt(text, device, 1, False)
    return {"prompt_embeds": embeds}


def folder(read: Callable[[str], dict[str, Any]]) -> ModelFacts | None:
    """A diffusers folder of version 1.5; None for version 2, which has another text encoder."""
    if read("unet/config.json").get("use_linear_projection"):
        return None
    return facts(unet.side_of(read))


def facts(side: int) -> ModelFacts:
    """A model with guidance."""
    return ModelFacts(Defaults(side, side, 30, 7.5), Limits(negative_prompt=True), TOKENS)


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


def architectures() -> Mapping[str, Architecture]:
    """The published model."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from .parts import architectures as parts

    return {
        "sd15": {
            "text_encoder": parts.clip_l,
            "unet": lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
            "vae": lambda: AutoencoderKL(latent_channels=4, **{**parts.VAE, "sample_size": 512}),
        }
    }


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
    misfits=misfits,
    tokenizers=lambda tokens: {"tokenizer": clip_tokenizer()},
    scheduler=lambda configs: Scheduler("PNDMScheduler", SCHEDULE),
    trained_for=trained_for,
    single_files=SingleFiles(
        preferred={
            "checkpoint": ("v1-5-pruned*", "sd-v1-5*", "sd15*"),
            "text_encoder": ("clip_l*",),
            "vae": ("vae-ft-mse-840000*", "sd-vae-ft-*", "*sd15*vae*"),
        },
        examples={
            "unet": "v1-5-pruned-emaonly-fp16.safetensors",
            "text_encoder": "v1-5-pruned-emaonly-fp16.safetensors",
            "vae": "v1-5-pruned-emaonly-fp16.safetensors",
        },
        facts=lambda configs: facts(USUAL_SIDE),
        folders={name: "checkpoints" for name in ("unet", "text_encoder", "vae")},
        only_by_name=frozenset({"vae"}),  # its shapes are the same as in SDXL
        foreign={"vae": ("sdxl*",)},
    ),
    loras=Loras(detect_lora, original_names=unet.original_names),
    detect_control=detect_control,
    control_folder=control_folder,
    architectures=architectures,
)
