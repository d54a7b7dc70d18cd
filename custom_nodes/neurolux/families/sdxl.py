"""SDXL, and models distilled from it (SDXL-Lightning)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..catalog.limits import Defaults, GuidanceLimit, Limits, StepLimit
from ..catalog.models import Model, SchedulerChoice
from ..planning.records import FamilyCosts
from ..weights.stamps import Shapes
from .blocks import BlockLists
from .parts import unet
from .parts.autoencoder import VAE, scaled_from_raw, scaled_to_raw
from .parts.clip import CLIP_G, CLIP_L
from .parts.clip import tokenizer as clip_tokenizer
from .parts.placed import given_latents
from .parts.shapes import USUAL_SIDE, children
from .spec import (
    Architecture,
    Component,
    Config,
    ControlKind,
    Controls,
    Detected,
    Encoding,
    FamilySpec,
    LatentSpace,
    LoaderNode,
    Loras,
    ModelFacts,
    Part,
    PipelineClass,
    Scheduler,
    Signature,
    SingleFiles,
    Task,
    TrainingBatch,
    TrainingFormula,
)

if TYPE_CHECKING:
    import torch


SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
"""Settings of EulerDiscreteScheduler."""
SCALING = 0.13025
TOKENS = 77
OTHER_TEXT_WIDTHS = {768, 1024}
"""Of the text that Stable Diffusion 1 and 2 attend to."""
LIGHTNING_STEPS = (1, 2, 4, 8)

UNET = Part(
    name="sdxl-unet",
    title="SDXL UNet",
    empty=unet.empty,
    config=unet.config,
    signatures=(  # ``beside`` distinguishes it from Stable Diffusion 1 and 2
        Signature("original", "input_blocks.0.0.weight", beside=("label_emb.0.0.weight",)),
        Signature("diffusers", "down_blocks.0.resnets.0.conv1.weight", beside=("add_embedding.linear_1.weight",)),
    ),
    renames={"original": unet.renamed_original},
    blocks=unet.UNET_BLOCKS,
)


SIZE_EXTRAS = frozenset({"width", "height", "crop_w", "crop_h", "target_width", "target_height"})
"""What CLIP Text Encode SDXL sets in a CONDITIONING."""


def size_arguments(extra: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    """The pipeline's sizes from ``SIZE_EXTRAS``; those of the image where there are none."""
    return {
        "original_size": (extra.get("height", height), extra.get("width", width)),
        "crops_coords_top_left": (extra.get("crop_h", 0), extra.get("crop_w", 0)),
        "target_size": (extra.get("target_height", height), extra.get("target_width", width)),
    }


def encode(pipe: Any, text: str, device: Any, tokens: int) -> dict[str, torch.Tensor]:
    """The concatenated embeddings of both encoders, and the pooled embedding of the second."""
    embeds, _, pooled, _ = pipe.encode_prompt(text, device=device, do_classifier_free_guidance=False)
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def pipeline_options(index: Config) -> dict[str, Any]:
    """The rule for empty negative prompts, and no invisible watermark, which plain diffusers only adds if its package
    happens to be installed."""
    return {
        "force_zeros_for_empty_prompt": bool(index.get("force_zeros_for_empty_prompt", True)),
        "add_watermarker": False,
    }


def misfits(configs: Mapping[str, Config]) -> Iterator[tuple[str, int, int, str]]:
    """Compare the combined width of the text encoders, and the VAE, with the UNet."""
    main = configs["unet"]
    if "text_encoder" in configs and "text_encoder_2" in configs:
        width = configs["text_encoder"]["hidden_size"] + configs["text_encoder_2"]["hidden_size"]
        yield "text_encoder_2", width, main["cross_attention_dim"], "features together with the first encoder"
    if "vae" in configs:
        yield "vae", configs["vae"]["latent_channels"], main["out_channels"], "latent channels"


def tokenizers(tokens: int) -> dict[str, Any]:
    """CLIP's tokenizer, twice. OpenCLIP, which trained the second encoder, pads with token 0."""
    return {"tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer(pad_token="!")}


# Facts about a model, from its files


def plain_facts(side: int) -> ModelFacts:
    """SDXL itself, with guidance."""
    return ModelFacts(Defaults(side, side, 30, 5.0), Limits(negative_prompt=True), TOKENS)


def folder(read: Callable[[str], dict[str, Any]]) -> ModelFacts:
    """A diffusers folder. Trailing timesteps identify a Lightning model: no guidance, fixed numbers of steps."""
    side = unet.side_of(read)
    if read("scheduler/scheduler_config.json").get("timestep_spacing") != "trailing":
        return plain_facts(side)
    limits = Limits(
        num_inference_steps=StepLimit(min(LIGHTNING_STEPS), max(LIGHTNING_STEPS), LIGHTNING_STEPS),
        guidance_scale=GuidanceLimit(0.0, 1.0),
    )
    return ModelFacts(Defaults(side, side, 4, 0.0), limits, TOKENS)


def lightning(model: Model, steps: int) -> Model:
    """``model`` as a Lightning model for ``steps``: trailing timesteps, no guidance, no other number of steps."""
    limits = replace(
        model.limits,
        num_inference_steps=StepLimit(steps, steps, (steps,)),
        guidance_scale=GuidanceLimit(0.0, 1.0),
        negative_prompt=False,
    )
    return replace(
        model,
        defaults=replace(model.defaults, num_inference_steps=steps, guidance_scale=0.0),
        limits=limits,
        scheduler=SchedulerChoice("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    )


def detect_lora(header: Shapes) -> Detected | None:
    """Recognize a LoRA for a UNet whose text width is neither that of Stable Diffusion 1 nor that of 2."""
    widths = unet.lora_widths(header)
    return Detected("sdxl") if widths is not None and not widths & OTHER_TEXT_WIDTHS else None


# ControlNets

CONTROL_CLASS, UNION_CLASS = "ControlNetModel", "ControlNetUnionModel"
CONTROL_MODES = {
    "pose": 0, "depth": 1, "scribble": 2, "soft edge": 2, "canny": 3, "normal": 4, "segments": 5, "tile": 6,
    "inpaint": 7,
}  # fmt: skip
"""From the model card of xinsir/controlnet-union-sdxl-1.0. Only the promax version has the last two."""
CONTROL_VALUES_PER_TOKEN = 64 * 256
"""With guidance, a ControlNet passes 64 values per pixel to the UNet. A token is 16x16 pixels."""
CONTROL_VALUES_PER_PIXEL = 64
PUBLISHED_BLOCKS = 40
"""A ControlNet is half a UNet, with most of its weights in 40 blocks."""
WIDTH_NAMES = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "control_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
)
"""The tensor with the text width in a single file, under diffusers' and under the original name."""
UNET_KEYS = (
    "in_channels", "flip_sin_to_cos", "freq_shift", "down_block_types", "only_cross_attention", "block_out_channels",
    "layers_per_block", "downsample_padding", "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps",
    "cross_attention_dim", "transformer_layers_per_block", "encoder_hid_dim", "encoder_hid_dim_type",
    "attention_head_dim", "num_attention_heads", "use_linear_projection", "class_embed_type", "addition_embed_type",
    "addition_time_embed_dim", "num_class_embeds", "upcast_attention", "resnet_time_scale_shift",
    "projection_class_embeddings_input_dim", "mid_block_type",
)  # fmt: skip
"""The configuration values that a ControlNet shares with the UNet (``ControlNetModel.from_unet``)."""


def detect_control(header: Shapes) -> Detected | None:
    """Recognize a ControlNet for SDXL, with diffusers' or the original names. A Control-LoRA cannot be used."""
    if "lora_controlnet" in header:
        return Detected("sdxl", "it is a Control-LoRA, which diffusers cannot read; use a whole ControlNet")
    original = {"control_model.time_embed.0.weight", "control_model.label_emb.0.0.weight"}
    diffusers = {"controlnet_cond_embedding.conv_in.weight", "add_embedding.linear_1.weight"}
    return Detected("sdxl") if original <= set(header) or diffusers <= set(header) else None


def control_folder(config: Config) -> bool:
    """Whether the configuration is that of a ControlNet for SDXL."""
    if config.get("_class_name") == UNION_CLASS:
        return True
    return config.get("_class_name") == CONTROL_CLASS and config.get("addition_embed_type") == "text_time"


def control_architecture(unet: Any, header: Shapes) -> tuple[str, dict[str, Any]]:
    """The UNet's configuration, with the depth of each block from the file."""
    config = plain_control(unet.config, header)
    if "control_add_embedding.linear_1.weight" not in header:
        return CONTROL_CLASS, config
    for key in ("mid_block_type", "mid_block_scale_factor", "only_cross_attention", "downsample_padding"):
        config.pop(key, None)
    kinds, width = header["task_embedding"]
    return UNION_CLASS, {
        **config,
        "num_control_type": kinds,
        "num_trans_channel": width,
        "num_trans_head": 8,
        "num_trans_layer": children(header, "transformer_layes."),
        "num_proj_channel": header["spatial_ch_projs.weight"][0],
    }


def plain_control(unet: Config, header: Shapes) -> dict[str, Any]:
    """The configuration of ControlNetModel."""
    config = {key: unet[key] for key in UNET_KEYS if key in unet}
    embedding = "controlnet_cond_embedding."
    if f"{embedding}conv_in.weight" not in header:
        return config
    pairs = children(header, f"{embedding}blocks.") // 2
    channels = [header[f"{embedding}conv_in.weight"][0]]
    channels += [header[f"{embedding}blocks.{2 * index + 1}.weight"][0] for index in range(pairs)]
    config["conditioning_embedding_out_channels"] = channels
    config["conditioning_channels"] = header[f"{embedding}conv_in.weight"][1]
    blocks = range(children(header, "down_blocks."))
    attentions = [children(header, f"down_blocks.{index}.attentions.") for index in blocks]
    config["down_block_types"] = ["CrossAttnDownBlock2D" if count else "DownBlock2D" for count in attentions]
    config["transformer_layers_per_block"] = [
        children(header, f"down_blocks.{index}.attentions.0.transformer_blocks.") or 1 for index in blocks
    ]
    if not children(header, "mid_block.attentions."):
        config["mid_block_type"] = "UNetMidBlock2D"
    return config


def control_widths(module: Any) -> tuple[Any, ...]:
    """The widths of a UNet or a ControlNet, which must match."""
    values = (module.config[name] for name in ("block_out_channels", "in_channels", "cross_attention_dim"))
    return tuple(tuple(value) if isinstance(value, (list, tuple)) else value for value in values)


def combined(kind: ControlKind, modules: list[Any]) -> Any:
    """One module that runs all ``modules``."""
    from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
    from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel

    return MultiControlNetUnionModel(modules) if kind == "union" else MultiControlNetModel(modules)


def conflict(first: Any, other: Any) -> str | None:
    """Why two ControlNets cannot work together; None if they can."""
    differ = ("num_control_type" in first.config) != ("num_control_type" in other.config)
    return "one is a union ControlNet and the other is not" if differ else None


def image_argument(kind: ControlKind, task: Task) -> str:
    """The name of the pipeline's argument for control images."""
    return "image" if kind == "plain" and task == "text-to-image" else "control_image"


def make_control(unet: Any) -> Any:
    """Half a UNet, as diffusers makes it for training."""
    from diffusers import ControlNetModel

    return ControlNetModel.from_unet(unet, load_weights_from_unet=False)


CONTROLS = Controls(
    modes=CONTROL_MODES,
    blocks=BlockLists(("down_blocks", "mid_block"), levels=True),
    published=(PUBLISHED_BLOCKS, CONTROL_VALUES_PER_TOKEN, False),
    planned=lambda header: (CONTROL_VALUES_PER_TOKEN, False),
    activations=lambda module, width, height: width * height * CONTROL_VALUES_PER_PIXEL,
    architecture=control_architecture,
    single_file=lambda header: not {
        "controlnet_cond_embedding.conv_in.weight", "control_add_embedding.linear_1.weight"
    } & set(header),
    widths=control_widths,
    model_width=lambda denoiser: denoiser.config.cross_attention_dim,
    file_width=lambda header: next((header[name][1] for name in WIDTH_NAMES if name in header), None),
    folder_width=lambda config: config.get("cross_attention_dim"),
    combined=combined,
    conflict=conflict,
    make=make_control,
    image_argument=image_argument,
    passes_mode=lambda kind: kind == "union",
    mode_count=lambda config: config["num_control_type"],
)  # fmt: skip

# Training

UNET_VALUES = 3_800
UNET_WIDTH = 320 + 640 + 1280
"""Values per pixel that the UNet keeps for the backward pass, at this total width. Other widths are proportional."""


def training_scheduler(config: Config) -> Any:
    """The scheduler that adds noise in training, with the configuration of the pipeline's own scheduler."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(config)


def compare(denoiser: Any, scheduler: Any, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict the noise, or the velocity for a v-prediction model, at times drawn uniformly.

    The arithmetic is that of diffusers' examples/text_to_image/train_text_to_image_lora_sdxl.py.
    """
    import torch

    latents, noise = batch.latents, batch.noise
    steps = scheduler.config.num_train_timesteps
    times = torch.randint(0, steps, (len(latents),), generator=batch.generator).to(latents.device)
    noisy = scheduler.add_noise(latents, noise, times)
    sizes = [
        [*reversed(original), *reversed(crop), batch.side, batch.side]
        for original, crop in zip(batch.originals, batch.crops, strict=True)
    ]  # heights before widths, tops before lefts (SDXL paper, 2.2)
    predicted = denoiser(
        noisy,
        times,
        encoder_hidden_states=torch.cat([*batch.prompt["prompt_embeds"]]),
        added_cond_kwargs={
            "text_embeds": torch.cat([*batch.prompt["pooled_prompt_embeds"]]),
            "time_ids": torch.tensor(sizes, device=latents.device, dtype=latents.dtype),
        },
        return_dict=False,
    )[0]
    if scheduler.config.prediction_type == "v_prediction":
        return predicted, scheduler.get_velocity(latents, noise, times)
    return predicted, noise


def kept_values(config: Config, side: int, tokens: int) -> float:
    """The formula was counted on the real architecture at full width, on torch's meta device."""
    return side * side * UNET_VALUES * sum(config["block_out_channels"]) / UNET_WIDTH


PUBLISHED_UNET: dict[str, Any] = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def architectures() -> Mapping[str, Architecture]:
    """The published models, which are all of one size."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from .parts import architectures as parts

    one: Architecture = {
        "text_encoder": parts.clip_l,
        "text_encoder_2": parts.clip_g,
        "unet": lambda: UNet2DConditionModel(**PUBLISHED_UNET),
        "vae": lambda: AutoencoderKL(latent_channels=4, **parts.VAE),
    }
    return {name: one for name in ("sdxl-lightning", "sdxl-base", "sdxl-turbo")}


def pooled_width(config: Config) -> int | None:
    """What remains of the UNet's added embedding beside six embedded sizes."""
    whole, each = config.get("projection_class_embeddings_input_dim"), config.get("addition_time_embed_dim")
    return None if whole is None or each is None else whole - 6 * each


FAMILY = FamilySpec(
    name="sdxl",
    title="SDXL",
    components={
        "text_encoder": Component(CLIP_L),
        "text_encoder_2": Component(CLIP_G),
        "unet": Component(UNET),
        "vae": Component(VAE, {"scaling_factor": SCALING, "shift_factor": None}),
    },
    denoiser="unet",
    costs=FamilyCosts(
        denoiser="unet",
        sample_values=unet.sample_values,
        step_operations=unet.step_operations,
        compressible=frozenset({"unet"}),
        frame_values=unet.attending_values,
        fp16_without_bf16=True,
    ),
    pipelines={
        ("text-to-image", None): PipelineClass("StableDiffusionXLPipeline"),
        ("image-to-image", None): PipelineClass("StableDiffusionXLImg2ImgPipeline"),
        ("inpaint", None): PipelineClass("StableDiffusionXLInpaintPipeline"),
        ("text-to-image", "plain"): PipelineClass("StableDiffusionXLControlNetPipeline"),
        ("text-to-image", "union"): PipelineClass("StableDiffusionXLControlNetUnionPipeline"),
        ("image-to-image", "plain"): PipelineClass("StableDiffusionXLControlNetImg2ImgPipeline"),
        ("inpaint", "plain"): PipelineClass("StableDiffusionXLControlNetInpaintPipeline", (given_latents,)),
        ("image-to-image", "union"): PipelineClass("StableDiffusionXLControlNetUnionImg2ImgPipeline"),
        ("inpaint", "union"): PipelineClass("StableDiffusionXLControlNetUnionInpaintPipeline", (given_latents,)),
        ("video", None): PipelineClass("AnimateDiffSDXLPipeline"),
    },
    encoding=Encoding(
        encode,
        width="cross_attention_dim",
        pooled="pooled_prompt_embeds",
        pooled_width=pooled_width,
        cross_attends=True,
        weighs_tokens=True,
        extras=SIZE_EXTRAS,
        extra_arguments=size_arguments,
    ),
    latent=LatentSpace(
        to_raw=scaled_to_raw,
        from_raw=scaled_from_raw,
        comfy_format="SDXL",
        channels=4,
        upcasts_encoder=True,
    ),
    folders={"StableDiffusionXLPipeline": folder},
    running_steps=unet.running_steps,
    pipeline_options=pipeline_options,
    misfits=misfits,
    tokenizers=tokenizers,
    scheduler=lambda configs: Scheduler("EulerDiscreteScheduler", SCHEDULE),
    trained_for=unet.trained_for,
    single_files=SingleFiles(
        preferred={"checkpoint": ("sd_xl_base*", "sdxl*base*"), "vae": ("sdxl*vae*",)},
        examples={
            "unet": "sdxl_lightning_4step_unet.safetensors",
            "text_encoder": "sd_xl_base_1.0.safetensors",
            "text_encoder_2": "sd_xl_base_1.0.safetensors",
            "vae": "sd_xl_base_1.0.safetensors",
        },
        facts=lambda configs: plain_facts(USUAL_SIDE),
        folders={name: "checkpoints" for name in ("text_encoder", "text_encoder_2", "vae")},
        only_by_name=frozenset({"vae"}),  # its shapes are the same as in Stable Diffusion 1
        steps_of=unet.lightning_steps,
        distilled=lightning,
    ),
    loras=Loras(
        detect_lora,
        state_arguments=lambda pipe: {"unet_config": pipe.unet.config},
        original_names=unet.original_names,
    ),
    controls=CONTROLS,
    detect_control=detect_control,
    control_folder=control_folder,
    control_classes=(CONTROL_CLASS, UNION_CLASS),
    training=TrainingFormula(
        architecture="stable-diffusion-xl-v1-base/lora",
        targets=("to_q", "to_k", "to_v", "to_out.0"),
        scheduler=training_scheduler,
        compare=compare,
        kept_values=kept_values,
        prediction_type=lambda config: str(config.get("prediction_type", "epsilon")),
        file_tensors=unet.kohya_lora,
    ),
    loader=LoaderNode(
        "NeuroLuxLoadSDXLLightning",
        "Load SDXL-Lightning",
        "Loads SDXL-Lightning. Sample uses the checkpoint that was distilled for its number of steps.",
    ),
    architectures=architectures,
)
